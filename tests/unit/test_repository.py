"""Loading aggregates: by replay, and from snapshots."""

import logging
from collections.abc import Callable
from typing import Any

import pytest

from eventflow import (
    Aggregate,
    AggregateRepository,
    Command,
    CommandContext,
    Event,
    EventFlow,
    EventMetadata,
    InvalidIdentityError,
    InvalidMessageError,
    ManualClock,
    MissingApplierError,
    UndecodableMessageError,
    UnknownEventDefinitionError,
    aggregate_version,
    applies,
)
from eventflow.aggregates import stream_of
from eventflow.clock import Clock
from eventflow.eventstore import Changes, EventId, History, InMemoryEventStore, NewEvent, ReceiptKey, Snapshot, StreamId
from tests.unit.bench import Bench, OrderId, ThingyId
from tests.unit.test_aggregate import Order, OrderClosed, OrderLost, OrderPaid, OrderPlaced

ORDER = OrderId("order-0192f0c1-7d3e-7cc1-8f4a-2b1d6f0e9a55")


class Watched(InMemoryEventStore):
    """An event store that tells what was read of it."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.looks: list[History] = []

    async def look(self, stream: StreamId | None, receipt: ReceiptKey, **options: Any) -> History:
        history = await super().look(stream, receipt, **options)
        self.looks.append(history)
        return history

    async def add(self, aggregate_type: type[Aggregate[Any]], *events: tuple[str, int, str]) -> None:
        """Store events as anybody could have."""
        stream = stream_of(aggregate_type, ORDER)
        version = len(await self.load(stream))
        new = tuple(
            NewEvent(EventId.at(stream, number), name, of, data.encode())
            for number, (name, of, data) in enumerate(events, start=version + 1)
        )
        metadata = EventMetadata(source_id="command-1")
        await self.append(Changes(metadata=metadata, stream=stream, expected_version=version, events=new))


def repository(
    store: InMemoryEventStore, *aggregates: type[Aggregate[Any]], flow: EventFlow | None = None
) -> AggregateRepository:
    """A repository that knows these aggregates, and what else a flow has."""
    flow = flow or EventFlow("repository")
    flow.add_aggregates(*aggregates)
    model = flow.check()
    return AggregateRepository(store, model.events, model.aggregates)


@pytest.fixture
def store() -> Watched:
    """An empty store."""
    return Watched(ManualClock())


async def test_loaded_aggregate_is_what_its_events_have_made_it(store: Watched) -> None:
    """All of them, in order; they are stored, and nothing is left to commit."""
    events = ("OrderPlaced", 1, '{"total_cents":700}'), ("OrderPaid", 1, '{"cents":200}'), ("OrderClosed", 1, "{}")
    await store.add(Order, *events)

    order = await repository(store, Order).load(Order, ORDER)

    assert order == Order(total_cents=700, paid_cents=200, is_closed=True, notes=["OrderPaid", "OrderClosed"])
    assert (order.id, order.stream_version, order.is_new, order.uncommitted_events) == (ORDER, 3, False, ())


async def test_aggregate_without_events_is_new(store: Watched) -> None:
    """Loading makes nothing."""
    order = await repository(store, Order).load(Order, ORDER)

    assert (order.is_new, order.stream_version, order) == (True, 0, Order())


class Invoice(Aggregate[OrderId]):
    """Keyed as orders are, and applies some of the same events."""

    paid_cents: int = 0

    @applies
    def _paid(self, event: OrderPaid) -> None:
        self.paid_cents += event.cents


async def test_aggregates_of_one_id_do_not_mix(store: Watched) -> None:
    """A stream is of one aggregate type, and events of a shared type stay where they were emitted."""
    await store.add(Order, ("OrderPaid", 1, '{"cents":1}'))
    await store.add(Invoice, ("OrderPaid", 1, '{"cents":2}'))
    aggregates = repository(store, Order, Invoice)

    assert (await aggregates.load(Order, ORDER)).paid_cents == 1
    assert (await aggregates.load(Invoice, ORDER)).paid_cents == 2


async def test_identity_of_another_aggregate_is_refused(store: Watched) -> None:
    """It would find nothing, and look like a new aggregate."""
    aggregates = repository(store, Order)

    for wrong in (ThingyId.new(), str.__str__(ORDER)):
        with pytest.raises(InvalidIdentityError, match="Order is identified by OrderId"):
            await aggregates.load(Order, wrong)  # pyright: ignore[reportArgumentType]


class Failing(Aggregate[OrderId]):
    """Cannot apply what it has emitted once."""

    @applies
    def _placed(self, event: OrderPlaced) -> None:
        if event.total_cents == 2:
            raise ZeroDivisionError("no rate")


@pytest.mark.parametrize(
    ("second", "error"),
    [
        (("OrderPlaced", 1, '{"total_cents":2}'), ZeroDivisionError),
        (("OrderPlaced", 1, '{"total_cents":"2"}'), UndecodableMessageError),
        (("OrderPlaced", 2, "{}"), UnknownEventDefinitionError),
        (("OrderLost", 1, "{}"), MissingApplierError),
    ],
    ids=["applier", "json", "version", "no-applier"],
)
async def test_event_that_cannot_be_replayed_is_pointed_to(
    store: Watched, second: tuple[str, int, str], error: type[Exception]
) -> None:
    """The error is what it is, and a note on it says which event of which stream it was."""
    await store.add(Failing, ("OrderPlaced", 1, '{"total_cents":1}'), second)
    flow = EventFlow("failing")
    flow.add_events(OrderLost)

    with pytest.raises(error) as caught:
        await repository(store, Failing, flow=flow).load(Failing, ORDER)

    assert caught.value.__notes__ == [f"This was event 2 of Failing {ORDER}."]


async def test_aggregate_that_emits_while_it_is_loaded_is_refused(store: Watched) -> None:
    """The next command would store what nobody asked for."""

    class Chatty(Aggregate[OrderId]):
        @applies
        def _placed(self, event: OrderPlaced) -> None:
            self.emit(OrderClosed())

        @applies
        def _closed(self, event: OrderClosed) -> None: ...

    await store.add(Chatty, ("OrderPlaced", 1, '{"total_cents":1}'))

    with pytest.raises(Exception, match="Chatty emits OrderClosed while it applies"):
        await repository(store, Chatty).load(Chatty, ORDER)


async def test_upgraded_events_keep_the_streams_version(store: Watched) -> None:
    """A stored event counts as one, whether it is read as several or as none."""
    flow = EventFlow("upgraded")

    @flow.upgrader
    def split(old: OrderLost) -> list[OrderPaid]:
        return [OrderPaid(cents=1), OrderPaid(cents=2)]

    @flow.upgrader
    def drop(old: OrderClosed) -> None:
        pass

    assert split is not drop
    await store.add(Order, ("OrderLost", 1, "{}"), ("OrderClosed", 1, "{}"))

    order = await repository(store, Order, flow=flow).load(Order, ORDER)

    assert (order.stream_version, order.paid_cents, order.is_closed) == (2, 3, False)


class CountUp(Command[OrderId, int]):
    """Emits so many events; returns what there was before."""

    by: int = 1


class Counted(Event):
    """One of them."""


@aggregate_version("Counter", 1)
class Counter(Aggregate[OrderId], snapshot_every=3):
    """A counter as it was first."""

    count: int = 0

    @applies
    def _counted(self, event: Counted) -> None:
        self.count += 1


@aggregate_version("Counter", 2)
class Tally(Aggregate[OrderId], snapshot_every=3):
    """As it was then."""

    strokes: int = 0

    @applies
    def _counted(self, event: Counted) -> None:
        self.strokes += 1


@aggregate_version("Counter", 3)
class Ledger(Aggregate[OrderId], snapshot_every=3):
    """As it is now."""

    total: int = 0
    origin: str = "replayed"

    @applies
    def _counted(self, event: Counted) -> None:
        self.total += 1


def to_tally(old: Counter) -> Tally:
    """One step."""
    return Tally(strokes=old.count)


def to_ledger(old: Tally) -> Ledger:
    """The next."""
    return Ledger(total=old.strokes, origin="upgraded")


def cannot(old: Tally) -> Ledger:
    """A step that fails."""
    raise ZeroDivisionError


def release(store: Watched, counter_type: type[Aggregate[Any]], *upgraders: Callable[..., Any]) -> Bench:
    """A release of the application, whose counter is of this type."""
    flow = EventFlow("counter")

    async def count_up(counter: Any, command: CountUp, context: CommandContext) -> int:
        before = getattr(counter, counter.__struct_fields__[0])
        for _ in range(command.by):
            counter.emit(Counted())
        return before

    count_up.__annotations__["counter"] = counter_type
    flow.command_handler(count_up)
    for upgrader in upgraders:
        flow.upgrader(upgrader)
    return Bench(flow, events=lambda _: store)


async def test_snapshot_is_taken_after_every_so_many_events(store: Watched) -> None:
    """From it on only later events are read, and the state is the same."""
    bus = release(store, Counter).bus

    before = [await bus.publish(CountUp(aggregate_id=ORDER, by=by)) for by in (1, 1, 1, 1, 1, 7, 1, 0)]

    assert before == [0, 1, 2, 3, 4, 5, 12, 13]
    assert [look.snapshot and look.snapshot.stream_version for look in store.looks] == [
        *(None, None, None),
        *(3, 3, 3),  # the third publication has written it
        *(12, 12),  # seven events at once: one, with all of them
    ]
    assert [len(look.events) for look in store.looks] == [0, 1, 2, 0, 1, 2, 0, 1]


async def test_without_snapshot_every_all_events_are_replayed(store: Watched) -> None:
    """Whatever there may be of another release."""

    @aggregate_version("Counter", 1)
    class Bare(Aggregate[OrderId]):
        count: int = 0

        @applies
        def _counted(self, event: Counted) -> None:
            self.count += 1

    await release(store, Counter).bus.publish(CountUp(aggregate_id=ORDER, by=5))

    assert await release(store, Bare).bus.publish(CountUp(aggregate_id=ORDER, by=5)) == 5
    assert await release(store, Bare).bus.publish(CountUp(aggregate_id=ORDER)) == 10
    assert [look.snapshot for look in store.looks] == [None] * 3


async def test_older_snapshot_is_upgraded(store: Watched) -> None:
    """Step by step to the state of today; later events are applied to that."""
    await release(store, Counter).bus.publish(CountUp(aggregate_id=ORDER, by=3))
    await release(store, Counter).bus.publish(CountUp(aggregate_id=ORDER, by=1))
    bench = release(store, Ledger, to_ledger, to_tally)

    ledger = await AggregateRepository(store, bench.model.events, bench.model.aggregates).load(Ledger, ORDER)

    assert (ledger, ledger.stream_version) == (Ledger(total=4, origin="upgraded"), 4)
    assert await bench.bus.publish(CountUp(aggregate_id=ORDER)) == 4


@pytest.mark.parametrize("upgraders", [(), (to_ledger,), (to_tally,), (to_tally, cannot)], ids=["0", "2", "1", "fails"])
async def test_snapshot_that_cannot_be_read_is_as_good_as_none(
    store: Watched, upgraders: tuple[Callable[..., Any], ...], caplog: pytest.LogCaptureFixture
) -> None:
    """A snapshot only saves time: all events are replayed, the log says why, and the next snapshot can be read."""
    await release(store, Counter).bus.publish(CountUp(aggregate_id=ORDER, by=5))
    bus = release(store, Ledger, *upgraders).bus

    with caplog.at_level(logging.WARNING, "eventflow.aggregates"):
        assert await bus.publish(CountUp(aggregate_id=ORDER)) == 5
    assert [record.message for record in caplog.records] == ["snapshot.unreadable"]
    caplog.clear()
    assert await bus.publish(CountUp(aggregate_id=ORDER)) == 6

    assert caplog.records == []
    assert store.looks[-1].snapshot is not None
    assert (store.looks[-1].snapshot.version, store.looks[-1].snapshot.stream_version) == (3, 6)


async def test_snapshot_whose_text_is_broken_is_as_good_as_none(store: Watched) -> None:
    """It does not keep anybody from their aggregate."""
    bus = release(store, Counter).bus
    await bus.publish(CountUp(aggregate_id=ORDER, by=5))
    metadata = EventMetadata(source_id="somebody")
    broken = Snapshot(5, 1, b'{"count":"five"}')
    await store.append(
        Changes(metadata=metadata, stream=stream_of(Counter, ORDER), expected_version=5, snapshot=broken)
    )

    assert await bus.publish(CountUp(aggregate_id=ORDER)) == 5


async def test_snapshot_of_a_newer_release_is_not_read(store: Watched) -> None:
    """While both run, the older one replays."""
    await release(store, Ledger).bus.publish(CountUp(aggregate_id=ORDER, by=5))

    assert await release(store, Counter).bus.publish(CountUp(aggregate_id=ORDER)) == 5
    assert [len(look.events) for look in store.looks] == [0, 5]


async def test_snapshots_are_inherited(store: Watched) -> None:
    """As every option of a class statement of a message is."""

    class Derived(Counter):
        pass

    bus = release(store, Derived).bus
    await bus.publish(CountUp(aggregate_id=ORDER, by=3))
    await bus.publish(CountUp(aggregate_id=ORDER))

    assert store.looks[-1].events == []


class Careless(Counter, snapshot_every=2):
    """Has a state that does not survive, once it is beyond the first event."""

    last: Any = None

    @applies
    def _remember(self, event: Counted) -> None:
        self.last = (self.count,)


class Undeclared(Counter, snapshot_every=2):
    """Keeps its state where nobody looks."""

    @applies
    def _remember(self, event: Counted) -> None:
        self.seen = True  # pyright: ignore[reportUninitializedInstanceVariable]


@pytest.mark.parametrize(
    ("counter_type", "said"),
    [
        (Careless, r"Careless cannot be stored: last=\(0,\) would be read back as \[0\]"),
        (Undeclared, "Undeclared cannot be stored: seen: not annotated as a field"),
    ],
)
async def test_state_that_a_snapshot_would_lose_is_refused(
    store: Watched, counter_type: type[Aggregate[Any]], said: str
) -> None:
    """The command that would have written it gets the error, with class and field, and nothing is stored."""
    bus = release(store, counter_type).bus
    await bus.publish(CountUp(aggregate_id=ORDER))

    with pytest.raises(InvalidMessageError, match=said):
        await bus.publish(CountUp(aggregate_id=ORDER))

    assert len(await store.load(stream_of(counter_type, ORDER))) == 1
