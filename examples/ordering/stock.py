"""Stock: reserved for orders, and released."""

from eventflow import Aggregate, Command, CommandContext, Event, EventFlow, applies
from examples.ordering.ids import ItemId, OrderId

flow = EventFlow("stock")


class StockArrived(Event):
    """More of it is in the warehouse."""

    quantity: int


class StockReserved(Event):
    """So many are set aside for an order."""

    order_id: OrderId
    quantity: int


class StockRefused(Event):
    """There are not so many."""

    order_id: OrderId


class StockReleased(Event):
    """An order does not need them after all."""

    order_id: OrderId
    quantity: int


class Item(Aggregate[ItemId], snapshot_every=20):
    """One item in the warehouse. Its stream grows with every order, so its state is stored now and then."""

    available: int = 0
    reserved: dict[str, int] = {}

    def arrive(self, quantity: int) -> None:
        """Put more on the shelf."""
        self.emit(StockArrived(quantity=quantity))

    def reserve(self, order_id: OrderId, quantity: int) -> None:
        """Set some aside, or say that there are not enough."""
        if quantity <= self.available:
            self.emit(StockReserved(order_id=order_id, quantity=quantity))
        else:
            self.emit(StockRefused(order_id=order_id))

    def release(self, order_id: OrderId) -> None:
        """Put back what was set aside."""
        if order_id in self.reserved:
            self.emit(StockReleased(order_id=order_id, quantity=self.reserved[order_id]))

    @applies
    def _arrived(self, event: StockArrived) -> None:
        self.available += event.quantity

    @applies
    def _reserved(self, event: StockReserved) -> None:
        self.available -= event.quantity
        self.reserved[str(event.order_id)] = event.quantity

    @applies
    def _refused(self, event: StockRefused) -> None:
        pass

    @applies
    def _released(self, event: StockReleased) -> None:
        self.available += event.quantity
        del self.reserved[str(event.order_id)]


class AddStock(Command[ItemId]):
    """Goods have arrived."""

    quantity: int


class ReserveStock(Command[ItemId]):
    """Set some aside for an order."""

    order_id: OrderId
    quantity: int


class ReleaseStock(Command[ItemId]):
    """An order does not need its reservation."""

    order_id: OrderId


@flow.command_handler
async def add_stock(item: Item, command: AddStock, context: CommandContext) -> None:
    """More of it."""
    item.arrive(command.quantity)


@flow.command_handler
async def reserve_stock(item: Item, command: ReserveStock, context: CommandContext) -> None:
    """For an order."""
    item.reserve(command.order_id, command.quantity)


@flow.command_handler
async def release_stock(item: Item, command: ReleaseStock, context: CommandContext) -> None:
    """Back on the shelf."""
    item.release(command.order_id)
