"""What other departments do with the events: in tables of their own, in the transaction that completes each job."""

from eventflow import EventFlow, SubscriberContext
from examples.ordering.orders import OrderPaid, OrderRefunded, OrderShipped

flow = EventFlow("shipping")

TABLES = """
CREATE TABLE IF NOT EXISTS shipment (order_id text PRIMARY KEY, item_id text NOT NULL, quantity integer NOT NULL);
CREATE TABLE IF NOT EXISTS booking (order_id text NOT NULL, cents bigint NOT NULL);
"""


@flow.subscriber(name="shipping")
async def print_label(event: OrderShipped, context: SubscriberContext) -> None:
    """One parcel for one order: a second one would violate the primary key."""
    connection = await context.transaction()
    await connection.execute(
        "INSERT INTO shipment (order_id, item_id, quantity) VALUES ($1, $2, $3)",
        context.aggregate_id,
        str(event.item_id),
        event.quantity,
    )


@flow.subscriber(name="bookkeeping", ordered=True)
async def book(event: OrderPaid | OrderRefunded, context: SubscriberContext) -> None:
    """Payments and refunds of one order in order, each once: nothing but the transaction sees to that."""
    connection = await context.transaction()
    cents = event.cents if isinstance(event, OrderPaid) else -event.cents
    await connection.execute("INSERT INTO booking (order_id, cents) VALUES ($1, $2)", context.aggregate_id, cents)
