"""Orders to place and pay, on a bench over an event store where others may be faster."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import anyio

from eventflow import Command, CommandContext, EventFlow, EventMetadata, StreamId
from eventflow.clock import Clock
from eventflow.eventstore import Changes, EventId, History, InMemoryEventStore, NewEvent, ReceiptKey
from eventflow.ids import JobId
from tests.unit.bench import Bench, OrderId, PlaceOrder
from tests.unit.test_aggregate import Order, OrderPaid, OrderPlaced

ORDER = OrderId("order-0192f0c1-7d3e-7cc1-8f4a-2b1d6f0e9a55")
STREAM = StreamId("Order", ORDER)
LATER = timedelta(hours=1)


class PayOrder(Command[OrderId, int]):
    """Returns what is paid then."""

    cents: int = 1


class Contended(InMemoryEventStore):
    """An event store where somebody else is faster so many times."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.others = 0
        self.looks = 0
        self.tries = 0

    async def look(self, stream: StreamId | None, receipt: ReceiptKey, **options: Any) -> History:
        self.looks += 1
        return await super().look(stream, receipt, **options)

    def write(self, changes: Changes, *, job_id: JobId | None = None) -> list[JobId]:
        self.tries += 1
        if self.others and changes.events:
            self.others -= 1
            super().write(_of_somebody_else(changes))
        return super().write(changes, job_id=job_id)


def _of_somebody_else(changes: Changes) -> Changes:
    assert changes.stream is not None
    event = NewEvent(EventId.at(changes.stream, changes.expected_version + 1), "OrderPaid", 1, b'{"cents":100}')
    return Changes(
        metadata=EventMetadata(source_id="somebody"),
        stream=changes.stream,
        expected_version=changes.expected_version,
        events=(event,),
    )


async def place(order: Order, command: PlaceOrder, context: CommandContext) -> int:
    """Say what was there before."""
    order.emit(OrderPlaced(total_cents=command.total_cents))
    return order.stream_version


async def pay(order: Order, command: PayOrder, context: CommandContext) -> int:
    """Pay something."""
    order.emit(OrderPaid(cents=command.cents))
    return order.paid_cents


def bench_of(*handlers: Callable[..., Any], middleware: tuple[Callable[..., Any], ...] = ()) -> Bench:
    """A bench with these handlers, over a store where others may be faster."""
    flow = EventFlow("execution")
    for handler in handlers:
        flow.command_handler(handler)
    for function in middleware:
        flow.middleware(function)
    return Bench(flow, events=Contended)


def store_of(bench: Bench) -> Contended:
    """Its event store."""
    assert isinstance(bench.events, Contended)
    return bench.events


async def names(bench: Bench, stream: StreamId = STREAM) -> list[str]:
    """The events of a stream, by name."""
    return [event.name for event in await bench.events.load(stream)]


async def in_time(bench: Bench, action: Callable[[], Awaitable[Any]]) -> Any:
    """Do something while time passes, so that pauses end."""
    outcome: list[Any] = []

    async def act() -> None:
        try:
            outcome.append(await action())
        except Exception as exc:  # noqa: BLE001 - raised where it was asked for
            outcome.append(exc)

    async with anyio.create_task_group() as group:
        group.start_soon(act)
        await bench.advance(2)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]
