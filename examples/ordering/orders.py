"""Orders: placed, paid in time or cancelled, shipped."""

from datetime import timedelta
from enum import StrEnum

from eventflow import Aggregate, Command, CommandContext, DomainError, Event, EventFlow, applies
from examples.ordering.ids import ItemId, OrderId

PAY_WITHIN = timedelta(seconds=3)  # days, in real life
flow = EventFlow("orders")


class OrderPlaced(Event):
    """A customer wants something."""

    item_id: ItemId
    quantity: int
    cents: int


class OrderPaid(Event):
    """The money is here."""

    cents: int


class OrderRefunded(Event):
    """The money went back: there was nothing to ship."""

    cents: int


class OrderCancelled(Event):
    """It was not paid in time."""


class OrderRejected(Event):
    """There is not enough in stock."""


class OrderShipped(Event):
    """It is on its way."""

    item_id: ItemId
    quantity: int


class OrderState(StrEnum):
    """Where an order stands."""

    NEW = "new"
    PLACED = "placed"
    PAID = "paid"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    SHIPPED = "shipped"


class Order(Aggregate[OrderId]):
    """One order of one item."""

    state: OrderState = OrderState.NEW
    item_id: ItemId | None = None
    quantity: int = 0
    cents: int = 0

    def place(self, item_id: ItemId, quantity: int, cents: int) -> None:
        """Begin."""
        self._must_be(OrderState.NEW)
        self.emit(OrderPlaced(item_id=item_id, quantity=quantity, cents=cents))

    def pay(self) -> None:
        """Take the money, if it is not too late."""
        self._must_be(OrderState.PLACED)
        self.emit(OrderPaid(cents=self.cents))

    def cancel_unpaid(self) -> None:
        """Wait no longer for the money."""
        if self.state is OrderState.PLACED:
            self.emit(OrderCancelled())

    def reject(self) -> None:
        """Give up for want of stock; what was paid goes back."""
        if self.state is OrderState.PAID:
            self.emit(OrderRefunded(cents=self.cents))
        if self.state in (OrderState.PLACED, OrderState.PAID):
            self.emit(OrderRejected())

    def ship(self) -> None:
        """Send it."""
        self._must_be(OrderState.PAID)
        assert self.item_id is not None
        self.emit(OrderShipped(item_id=self.item_id, quantity=self.quantity))

    def _must_be(self, state: OrderState) -> None:
        if self.state is not state:
            raise DomainError(f"{self.id} is {self.state}, not {state}")

    @applies
    def _placed(self, event: OrderPlaced) -> None:
        self.state, self.item_id, self.quantity, self.cents = (
            OrderState.PLACED,
            event.item_id,
            event.quantity,
            event.cents,
        )

    @applies
    def _paid(self, event: OrderPaid) -> None:
        self.state = OrderState.PAID

    @applies
    def _refunded(self, event: OrderRefunded) -> None:
        self.cents -= event.cents

    @applies
    def _cancelled(self, event: OrderCancelled) -> None:
        self.state = OrderState.CANCELLED

    @applies
    def _rejected(self, event: OrderRejected) -> None:
        self.state = OrderState.REJECTED

    @applies
    def _shipped(self, event: OrderShipped) -> None:
        self.state = OrderState.SHIPPED


class PlaceOrder(Command[OrderId]):
    """Order so many of an item."""

    item_id: ItemId
    quantity: int
    cents: int


class PayOrder(Command[OrderId]):
    """Pay it."""


class CancelUnpaidOrder(Command[OrderId]):
    """The deadline of the payment."""


class RejectOrder(Command[OrderId]):
    """Tell the order that there is no stock for it."""


class ShipOrder(Command[OrderId]):
    """Tell the order that it can go."""


@flow.command_handler
async def place_order(order: Order, command: PlaceOrder, context: CommandContext) -> None:
    """The order and its deadline come about together."""
    order.place(command.item_id, command.quantity, command.cents)
    context.schedule_deadline("payment", CancelUnpaidOrder(aggregate_id=order.id), delay=PAY_WITHIN)


@flow.command_handler
async def pay_order(order: Order, command: PayOrder, context: CommandContext) -> None:
    """Payment and deadline race; whichever is committed first wins."""
    order.pay()
    context.cancel_deadline("payment")


@flow.command_handler
async def cancel_unpaid_order(order: Order, command: CancelUnpaidOrder, context: CommandContext) -> None:
    """The deadline."""
    order.cancel_unpaid()


@flow.command_handler
async def reject_order(order: Order, command: RejectOrder, context: CommandContext) -> None:
    """No stock."""
    order.reject()
    context.cancel_deadline("payment")


@flow.command_handler
async def ship_order(order: Order, command: ShipOrder, context: CommandContext) -> None:
    """Off it goes."""
    order.ship()
