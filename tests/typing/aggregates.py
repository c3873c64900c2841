"""What users' code infers about aggregates and events: checked, never run.

An ignored error is one that the checker must find: an ignore that nothing needs is an error itself.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from collections.abc import Sequence
from datetime import timedelta
from typing import Generic, TypeVar, assert_type

from eventflow import (
    Aggregate,
    App,
    Command,
    CommandContext,
    Event,
    EventFlow,
    Identity,
    JobId,
    RecordedEvent,
    StandaloneCommand,
    StoredEvent,
    StreamId,
    aggregate_version,
    applies,
    event_version,
)


class OrderId(Identity):
    """An identity."""


class CustomerId(Identity):
    """Another identity."""


@event_version("OrderPlaced", 2, aliases=["Placed"])
class OrderPlaced(Event):
    """An event."""

    total_cents: int
    note: str = ""


class OrderPaid(Event):
    """Another event."""


class LinesAdded(Event):
    """One that is read as others."""

    names: list[str]


@aggregate_version("Order", 3)
class Order(Aggregate[OrderId], snapshot_every=100):
    """An aggregate."""

    placed: bool = False
    total_cents: int = 0

    def place(self, total_cents: int) -> None:
        self.emit(OrderPlaced(total_cents=total_cents))
        self.emit("placed")  # type: ignore[arg-type]

    @applies
    def _placed(self, event: OrderPlaced) -> None:
        self.placed = True
        self.total_cents = event.total_cents
        self.total_cents = event.note  # type: ignore[assignment]

    @applies
    def _either(self, event: OrderPaid | LinesAdded) -> None: ...

    @applies  # type: ignore[type-var]
    async def _later(self, event: OrderPaid) -> None: ...


class Customer(Aggregate[CustomerId]):
    """Another aggregate."""


class NoIdentity(Aggregate[str]):  # type: ignore[type-var]
    """An aggregate of mere text."""


K = TypeVar("K", bound=Identity)


class Audited(Aggregate[K], Generic[K]):
    """A base of aggregates."""

    changes: int = 0


class Invoice(Audited[OrderId]):
    """One of them."""


class PlaceOrder(Command[OrderId, int]):
    """A command."""

    total_cents: int


class RebuildIndex(StandaloneCommand[int]):
    """One that no deadline can be."""


flow = EventFlow("shop")


@flow.command_handler
async def place_order(order: Order, command: PlaceOrder, context: CommandContext) -> int:
    assert_type(order.id, OrderId)
    assert_type(order.stream_version, int)
    assert_type(order.is_new, bool)
    assert_type(order.uncommitted_events, tuple[Event, ...])
    assert_type(context.schedule_deadline("payment", command, delay=timedelta(minutes=30)), JobId)
    assert_type(context.schedule_deadline("payment", RebuildIndex()), JobId)
    context.schedule_deadline("payment", command, dely=timedelta(1))  # type: ignore[call-arg]
    context.cancel_deadline("payment")
    order.place("much")  # type: ignore[arg-type]
    order.id = command.aggregate_id  # type: ignore[misc]
    return order.stream_version


@flow.upgrader
def split(old: LinesAdded) -> list[OrderPlaced]:
    return [OrderPlaced(total_cents=0, note=name) for name in old.names]


async def decorated_functions_and_classes_stay_what_they_are(
    order: Order, command: PlaceOrder, context: CommandContext
) -> None:
    assert_type(await place_order(order, command, context), int)
    assert_type(split(LinesAdded(names=[])), list[OrderPlaced])
    await place_order(command, order, context)  # type: ignore[arg-type]


def aggregates_are_made_with_their_identity(order_id: OrderId, customer_id: CustomerId) -> None:
    assert_type(Order.new(order_id), Order)
    assert_type(Invoice.new(order_id).id, OrderId)
    assert_type(Invoice.new(order_id).changes, int)
    Order.new("order-1")  # type: ignore[arg-type]
    Order.new(customer_id)  # type: ignore[arg-type]
    Invoice.new(customer_id)  # type: ignore[arg-type]


def state_is_checked(order: Order) -> None:
    assert_type(Order(placed=True, total_cents=1), Order)
    Order(True)  # type: ignore[call-arg]
    Order(placed="yes")  # type: ignore[arg-type]
    Order(total=1)  # type: ignore[call-arg]
    order.placed = "yes"  # type: ignore[assignment]


def events_are_frozen_and_keyword_only(event: OrderPlaced) -> None:
    assert_type(event.total_cents, int)
    event.total_cents = 2  # type: ignore[misc]
    OrderPlaced(1)  # type: ignore[call-arg]
    OrderPlaced(total_cents="1")  # type: ignore[arg-type]


async def stores_and_previews_give_events(app: App, order_id: OrderId, command: PlaceOrder) -> None:
    assert_type(await app.aggregates.load(Order, order_id), Order)
    assert_type(await app.commands.preview(command), Sequence[Event])
    assert_type(await app.events.load(StreamId("Order", order_id), after=1), Sequence[StoredEvent])
    await app.aggregates.load(Order, "order-1")  # type: ignore[arg-type]
    await app.aggregates.load(PlaceOrder, order_id)  # type: ignore[type-var]


def recorded_events_are_of_their_type(recorded: RecordedEvent[OrderPlaced]) -> None:
    assert_type(recorded.event.total_cents, int)
    any_event: RecordedEvent[Event] = recorded
    another: RecordedEvent[OrderPaid] = recorded  # type: ignore[assignment]
    assert any_event
    assert another


def decorators_are_of_their_kind() -> None:
    assert_type(aggregate_version("Customer")(Customer), type[Customer])
    aggregate_version("Customer")(OrderPlaced)  # type: ignore[type-var]
    event_version("OrderPaid")(Order)  # type: ignore[type-var]
    aggregate_version("Customer", aliases=["Client"])  # type: ignore[call-arg]
