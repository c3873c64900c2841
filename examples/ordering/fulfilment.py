"""The saga of an order: reserves stock, waits for the money, ships or gives up."""

from eventflow import CommandContext, Event, EventFlow, Saga, applies, handles, starts_with
from examples.ordering.ids import ItemId, OrderId
from examples.ordering.orders import OrderCancelled, OrderPaid, OrderPlaced, RejectOrder, ShipOrder
from examples.ordering.stock import ReleaseStock, ReserveStock, StockRefused, StockReserved

flow = EventFlow("fulfilment")


class FulfilmentStarted(Event):
    """Stock was asked for."""

    item_id: ItemId


class ReservationNoted(Event):
    """The stock is there."""


class PaymentNoted(Event):
    """The money is there."""


class CancellationNoted(Event):
    """Nobody wants it any more."""


@flow.saga
class Fulfilment(Saga[OrderId]):
    """Stock and payment come in any order; what follows is decided once both, or a refusal, are here."""

    item_id: ItemId | None = None
    is_reserved: bool = False
    is_paid: bool = False
    is_cancelled: bool = False

    @starts_with
    async def placed(self, event: OrderPlaced, context: CommandContext) -> None:
        """Ask for stock."""
        self.emit(FulfilmentStarted(item_id=event.item_id))
        context.schedule(ReserveStock(aggregate_id=event.item_id, order_id=self.id, quantity=event.quantity))

    @handles(by="order_id")
    async def reserved(self, event: StockReserved, context: CommandContext) -> None:
        """Ship if it is paid; put it back if it was cancelled meanwhile."""
        self.emit(ReservationNoted())
        self._decide(context)

    @handles(by="order_id")
    async def refused(self, event: StockRefused, context: CommandContext) -> None:
        """Give up."""
        context.schedule(RejectOrder(aggregate_id=self.id))
        self.complete()

    @handles()
    async def paid(self, event: OrderPaid, context: CommandContext) -> None:
        """Ship if the stock is there."""
        self.emit(PaymentNoted())
        self._decide(context)

    @handles()
    async def cancelled(self, event: OrderCancelled, context: CommandContext) -> None:
        """Put the stock back, if it is there already."""
        self.emit(CancellationNoted())
        self._decide(context)

    def _decide(self, context: CommandContext) -> None:
        if self.is_reserved and self.is_paid:
            context.schedule(ShipOrder(aggregate_id=self.id))
            self.complete()
        elif self.is_reserved and self.is_cancelled:
            assert self.item_id is not None
            context.schedule(ReleaseStock(aggregate_id=self.item_id, order_id=self.id))
            self.complete()

    @applies
    def _started(self, event: FulfilmentStarted) -> None:
        self.item_id = event.item_id

    @applies
    def _reservation(self, event: ReservationNoted) -> None:
        self.is_reserved = True

    @applies
    def _payment(self, event: PaymentNoted) -> None:
        self.is_paid = True

    @applies
    def _cancellation(self, event: CancellationNoted) -> None:
        self.is_cancelled = True
