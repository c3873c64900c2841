"""The command pipeline: load, handle, commit, all or nothing; a preview commits nothing."""

import anyio
import pytest

from eventflow import (
    Aggregate,
    Command,
    CommandContext,
    DomainError,
    DuplicateOperationError,
    Event,
    EventFlow,
    EventMetadata,
    Identity,
    ManualClock,
    StoredEvent,
    StreamId,
    applies,
)
from eventflow.eventstore import EventId
from eventflow.jobs import Outcome
from tests.unit.bench import Act, CancelOrder, OrderId, PlaceOrder, RebuildIndex
from tests.unit.contended import LATER, ORDER, STREAM, PayOrder, bench_of, names, pay, place
from tests.unit.test_aggregate import Order, OrderPaid
from tests.unit.test_runner import error_of


async def test_published_command_stores_its_events_and_returns_its_result() -> None:
    """From outside: the next command sees what the one before has done, and so does who loads the aggregate."""
    flow = EventFlow("orders")
    flow.command_handler(place)
    flow.command_handler(pay)

    async with flow.open("memory:", clock=ManualClock()) as app:
        assert await app.commands.publish(PlaceOrder(aggregate_id=ORDER, total_cents=700)) == 0
        assert await app.commands.publish(PayOrder(aggregate_id=ORDER, cents=200)) == 200
        assert await app.commands.publish(PayOrder(aggregate_id=ORDER, cents=500)) == 700
        order = await app.aggregates.load(Order, ORDER)
        other = await app.aggregates.load(Order, OrderId.new())

    assert (order.total_cents, order.paid_cents, order.stream_version) == (700, 700, 3)
    assert other.is_new


async def test_events_carry_where_they_come_from() -> None:
    """Published directly: command and source id, which begins a story; by a job: the job, in the story it is in."""
    flow = EventFlow("orders")
    flow.command_handler(place)
    flow.command_handler(pay)
    placed, paid = PlaceOrder(aggregate_id=ORDER, total_cents=7), PayOrder(aggregate_id=ORDER)

    async with flow.open("memory:", clock=ManualClock()) as app:
        await app.commands.publish(placed)
        job_id = await app.commands.schedule(paid)
        await app.run_due()
        first, second = await app.events.load(STREAM)

    assert (first.stream_version, first.id) == (1, EventId.at(STREAM, 1))
    assert first.metadata == EventMetadata(
        source_id=placed.source_id,
        command="PlaceOrder",
        correlation_id=placed.source_id,
        causation_id=placed.source_id,
    )
    assert second.metadata == EventMetadata(
        source_id=paid.source_id, command="PayOrder", job_id=job_id, correlation_id=job_id, causation_id=job_id
    )


async def test_story_goes_on_through_jobs() -> None:
    """What a command's handler schedules is caused by it, and its events belong to the same story."""

    async def placed_and_paid_later(order: Order, command: PlaceOrder, context: CommandContext) -> int:
        context.schedule(PayOrder(aggregate_id=command.aggregate_id), delay=LATER)
        return await place(order, command, context)

    flow, clock = EventFlow("orders"), ManualClock()
    flow.command_handler(placed_and_paid_later)
    flow.command_handler(pay)
    command = PlaceOrder(aggregate_id=ORDER, total_cents=7)

    async with flow.open("memory:", clock=clock) as app:
        await app.commands.publish(command)
        clock.advance(LATER)
        await app.run_due()
        metadata = (await app.events.load(STREAM))[1].metadata

    assert metadata.correlation_id == command.source_id
    assert metadata.causation_id == metadata.job_id is not None


@pytest.mark.parametrize("error", [DomainError("already placed"), ZeroDivisionError("bug")], ids=repr)
async def test_failed_handler_stores_nothing(error: Exception) -> None:
    """Its error reaches the caller as it is, and the same command can be tried again."""
    fails = [True, False]

    async def handle(order: Order, command: PlaceOrder, context: CommandContext) -> int:
        context.schedule(Act())
        context.schedule_deadline("payment", CancelOrder(aggregate_id=order.id), delay=LATER)
        result = await place(order, command, context)
        if fails.pop(0):
            raise error
        return result

    async def cancel(order: Order, command: CancelOrder, context: CommandContext) -> None: ...

    bench = bench_of(handle, cancel)
    command = PlaceOrder(aggregate_id=ORDER, total_cents=1)

    with pytest.raises(type(error)) as caught:
        await bench.bus.publish(command)

    assert caught.value is error
    assert (await names(bench), await bench.store.find()) == ([], [])
    assert await bench.bus.publish(command) == 0
    assert await names(bench) == ["OrderPlaced"]


@pytest.mark.parametrize(
    ("error", "outcome"), [(DomainError("no"), Outcome.DEAD), (ZeroDivisionError("bug"), Outcome.RETRY)], ids=repr
)
async def test_failed_handler_of_a_job_stores_nothing(error: Exception, outcome: Outcome) -> None:
    """A refusal is a dead letter at once, a bug is tried again."""

    async def handle(order: Order, command: PlaceOrder, context: CommandContext) -> int:
        await place(order, command, context)
        raise error

    bench = bench_of(handle)

    settlement = await bench.run(PlaceOrder(aggregate_id=ORDER, total_cents=1))

    assert (settlement.outcome, settlement.is_written) == (outcome, False)
    assert error_of(settlement)["message"] == str(error)
    assert await names(bench) == []


async def test_command_that_emits_nothing_is_done_all_the_same() -> None:
    """It has a result and a receipt, and the stream stays as it is."""
    runs: list[str] = []

    async def look(order: Order, command: PayOrder, context: CommandContext) -> int:
        runs.append(order.id)
        return order.total_cents

    bench = bench_of(place, look)
    await bench.bus.publish(PlaceOrder(aggregate_id=ORDER, total_cents=7))
    command = PayOrder(aggregate_id=ORDER)

    assert await bench.bus.publish(command) == 7
    with pytest.raises(DuplicateOperationError) as caught:
        await bench.bus.publish(command)

    assert (runs, caught.value.result) == ([ORDER], 7)
    assert await names(bench) == ["OrderPlaced"]


async def test_preview_tells_the_events_and_stores_nothing() -> None:
    """The handler runs on the aggregate as it is; no events, jobs, deadlines or receipt come of it."""

    async def handle(order: Order, command: PayOrder, context: CommandContext) -> int:
        context.schedule(Act(), delay=LATER)
        context.schedule_deadline("payment", command, delay=LATER)
        if order.paid_cents >= 2:
            raise DomainError("paid already")
        return await pay(order, command, context)

    bench = bench_of(handle)
    command = PayOrder(aggregate_id=ORDER, cents=2)

    for _ in range(2):
        assert await bench.bus.preview(command) == (OrderPaid(cents=2),)
        assert (await names(bench), await bench.store.find()) == ([], [])
    assert await bench.bus.publish(command) == 2
    with pytest.raises(DomainError, match="paid already"):
        await bench.bus.preview(PayOrder(aggregate_id=ORDER))


async def test_preview_of_a_command_without_an_aggregate_has_no_events() -> None:
    """It has none to tell."""

    async def rebuild(command: RebuildIndex, context: CommandContext) -> str:
        return ""

    assert await bench_of(rebuild).bus.preview(RebuildIndex()) == ()


async def test_commands_on_many_aggregates_do_not_mix() -> None:
    """Each has its own stream, densely numbered; all events are in one log."""
    bench, orders = bench_of(pay), [OrderId.new() for _ in range(10)]

    async with anyio.create_task_group() as group:
        for order_id in orders * 3:
            group.start_soon(bench.bus.publish, PayOrder(aggregate_id=order_id))

    streams: list[list[StoredEvent]] = [list(await bench.events.load(StreamId("Order", o))) for o in orders]
    assert [[event.stream_version for event in stream] for stream in streams] == [[1, 2, 3]] * 10
    assert len((await bench.events.read_all()).events) == 30


async def test_unicode_survives_everywhere() -> None:
    """In the names of identity and aggregate, in the command, and in the event."""

    class ÄpfelId(Identity):  # noqa: PLC2401 - such names are the point
        pass

    class Gepflückt(Event):  # noqa: PLC2401
        sorte: str

    class Äpfel(Aggregate[ÄpfelId]):  # noqa: PLC2401
        sorten: list[str] = []

        @applies
        def _picked(self, event: Gepflückt) -> None:
            self.sorten.append(event.sorte)

    class Pflücken(Command[ÄpfelId, str]):  # noqa: PLC2401
        sorte: str

    async def pflücken(äpfel: Äpfel, command: Pflücken, context: CommandContext) -> str:  # noqa: PLC2401
        äpfel.emit(Gepflückt(sorte=command.sorte))
        return äpfel.sorten[0]

    bench, of_one_tree = bench_of(pflücken), ÄpfelId.new()

    assert await bench.bus.publish(Pflücken(aggregate_id=of_one_tree, sorte="Rosé 🍎")) == "Rosé 🍎"
    assert await names(bench, StreamId("Äpfel", of_one_tree)) == ["Gepflückt"]
