"""The command pipeline: load, handle, commit, all or nothing; again if others got in between."""

from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from eventflow import (
    Aggregate,
    AnyCommand,
    Command,
    CommandBus,
    CommandContext,
    DomainError,
    DuplicateCommandHandlerError,
    DuplicateOperationError,
    Event,
    EventFlow,
    EventFlowError,
    EventMetadata,
    Identity,
    InvalidHandlerError,
    InvalidMessageError,
    JobState,
    ManualClock,
    NoCommandHandlerError,
    OptimisticConcurrencyError,
    RetryPolicy,
    SourceId,
    StandaloneCommand,
    StoredEvent,
    StreamId,
    SubscriberContext,
    applies,
)
from eventflow.clock import Clock
from eventflow.commands import CallNext
from eventflow.eventstore import Changes, EventId, History, InMemoryEventStore, NewEvent, ReceiptKey
from eventflow.ids import JobId
from eventflow.jobs import InMemoryCommits, Outcome, UnitsOfWork
from tests.unit.bench import Act, Bench, CancelOrder, OrderId, PlaceOrder, RebuildIndex, others_rest
from tests.unit.test_aggregate import Order, OrderClosed, OrderPaid, OrderPlaced
from tests.unit.test_runner import error_of

if TYPE_CHECKING:
    from fractions import Fraction

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


async def test_command_without_handler_loads_nothing() -> None:
    """It is an error before anything is looked at."""
    bench = bench_of(place)

    with pytest.raises(NoCommandHandlerError, match="PayOrder has no handler"):
        await bench.bus.publish(PayOrder(aggregate_id=ORDER))

    assert store_of(bench).looks == 0


def test_two_handlers_of_a_command_are_refused_when_the_flow_is_opened() -> None:
    """With an aggregate or without; the error names both functions."""

    async def place_too(command: PlaceOrder, context: CommandContext) -> int:
        return 0

    flow = EventFlow("orders")
    flow.command_handler(place)
    flow.command_handler(place_too)

    with pytest.raises(DuplicateCommandHandlerError, match=r"test_execution\.place, .*place_too"):
        flow.open("memory:")


class CustomerId(Identity):
    """Of another aggregate."""


class Customer(Aggregate[CustomerId]):
    """It."""

    orders: int = 0

    @applies
    def _placed(self, event: OrderPlaced) -> None:
        self.orders += 1


async def of_another(customer: Customer, command: PlaceOrder, context: CommandContext) -> int:
    """Takes an aggregate that the command does not address."""
    raise NotImplementedError


async def of_none(order: Order, command: RebuildIndex, context: CommandContext) -> str:
    """Takes one where the command addresses none."""
    raise NotImplementedError


async def without_context(order: Order, command: PlaceOrder) -> int:
    """Takes too little."""
    raise NotImplementedError


async def with_another_context(order: Order, command: PlaceOrder, context: int) -> int:
    """Takes another context."""
    raise NotImplementedError


async def turned_round(command: PlaceOrder, order: Order, context: CommandContext) -> int:
    """Takes the right things in another order."""
    raise NotImplementedError


async def with_another_result(order: Order, command: PlaceOrder, context: CommandContext) -> str:
    """Returns something else."""
    raise NotImplementedError


async def of_checkers(order: Order, command: PlaceOrder, context: "Fraction") -> int:
    """Names what exists for type checkers only."""
    raise NotImplementedError


MISSHAPEN: list[tuple[Callable[..., Any], str]] = [
    (of_another, "PlaceOrder addresses OrderId, but Customer is identified by CustomerId"),
    (of_none, "RebuildIndex addresses no aggregate"),
    (without_context, r"must be annotated as \(aggregate: SomeAggregate, command: SomeCommand, context: CommandCo"),
    (with_another_context, "its last parameter must be a CommandContext"),
    (turned_round, "must be annotated as"),
    (with_another_result, "returns str, but PlaceOrder declares int"),
    (of_checkers, "name 'Fraction' is not defined; .*importable at run time, not only under TYPE_CHECKING"),
]


@pytest.mark.parametrize(("handler", "said"), MISSHAPEN)
def test_handler_of_another_shape_is_refused_when_the_flow_is_opened(handler: Callable[..., Any], said: str) -> None:
    """The error names the function and says what does not fit."""
    flow = EventFlow("wrong")
    flow.command_handler(handler)

    with pytest.raises(InvalidHandlerError, match=rf"test_execution\.{handler.__name__}:? .*{said}|{said}"):
        flow.open("memory:")


async def test_aggregate_id_of_another_type_is_refused() -> None:
    """Nothing checks a command when it is made; the handler does not have to."""
    bench = bench_of(place)

    with pytest.raises(InvalidMessageError, match="PlaceOrder cannot be stored: aggregate_id"):
        await bench.bus.publish(PlaceOrder(aggregate_id=str.__str__(ORDER), total_cents=1))  # pyright: ignore[reportArgumentType]

    assert store_of(bench).tries == 0


async def test_field_of_another_type_is_refused_where_the_command_is_published() -> None:
    """As where it is scheduled: the handler does not run, and the error names the field."""
    bench = bench_of(place)
    command = PlaceOrder(aggregate_id=ORDER, total_cents="7")  # pyright: ignore[reportArgumentType]

    for attempt in (bench.bus.publish, bench.bus.preview):
        with pytest.raises(InvalidMessageError, match=r"PlaceOrder cannot be stored: .*\$\.total_cents"):
            await attempt(command)

    assert store_of(bench).looks == 0


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


async def test_conflict_runs_the_handler_again_on_a_fresh_aggregate() -> None:
    """What it emitted, scheduled and set before is forgotten; the result is that of the last try."""
    seen: list[tuple[int, int]] = []

    async def handle(order: Order, command: PayOrder, context: CommandContext) -> int:
        seen.append((order.stream_version, order.paid_cents))
        context.schedule(Act(), delay=LATER)
        context.schedule_deadline(f"payment {len(seen)}", command, delay=LATER)
        return await pay(order, command, context)

    bench = bench_of(handle)
    store_of(bench).others = 2

    assert await in_time(bench, lambda: bench.bus.publish(PayOrder(aggregate_id=ORDER))) == 201

    assert seen == [(0, 0), (1, 100), (2, 200)]
    assert await names(bench) == ["OrderPaid"] * 3
    assert Counter(job.name for job in await bench.store.find()) == {"Act": 1, "PublishCommand:PayOrder": 1}


@pytest.mark.parametrize("others", [5, 6])
async def test_six_tries_then_the_conflict_is_the_callers(others: int) -> None:
    """As in EventFlow: five more after the first; nothing of it is stored then."""
    bench = bench_of(pay)
    store = store_of(bench)
    store.others = others

    async def publish() -> Any:
        return await in_time(bench, lambda: bench.bus.publish(PayOrder(aggregate_id=ORDER)))

    if others < 6:
        assert await publish() == 501
    else:
        with pytest.raises(OptimisticConcurrencyError, match=rf"Order {ORDER} has changed since version 5"):
            await publish()

    assert store.tries == 6
    assert len(await store.load(STREAM)) == 6


async def test_pauses_between_tries_grow_and_are_random() -> None:
    """At most 50 ms after the first try, twice as much after each: without time passing there is no next try."""
    bench = bench_of(pay)
    store = store_of(bench)
    store.others = 6
    tried: list[tuple[float, int]] = []

    async def publish() -> None:
        with pytest.raises(OptimisticConcurrencyError):
            await bench.bus.publish(PayOrder(aggregate_id=ORDER))

    async with anyio.create_task_group() as group:
        group.start_soon(publish)
        for _ in range(1600):
            await anyio.wait_all_tasks_blocked()
            if len(tried) < store.tries:
                tried.append((bench.clock.monotonic(), store.tries))
            bench.clock.advance(0.001)

    pauses = [after - before for (before, _), (after, _) in pairwise(tried)]
    assert [number for _, number in tried] == [1, 2, 3, 4, 5, 6]
    assert all(0 < pause <= 0.05 * 2**number + 0.001 for number, pause in enumerate(pauses))
    assert len(set(pauses)) == 5
    assert max(pauses) > 0.1


@pytest.mark.parametrize("error", [OptimisticConcurrencyError("other", 1), ConnectionResetError()], ids=repr)
async def test_only_conflicts_of_its_own_are_tried_again(error: Exception) -> None:
    """What the handler itself raises is not one, whatever its type."""
    runs: list[int] = []

    async def handle(order: Order, command: PayOrder, context: CommandContext) -> int:
        runs.append(1)
        raise error

    with pytest.raises(type(error)):
        await bench_of(handle).bus.publish(PayOrder(aggregate_id=ORDER))

    assert runs == [1]


async def test_concurrent_commands_on_one_aggregate_never_conflict() -> None:
    """A hundred at once: each handler sees all before it, in order of arrival, and runs once."""
    arrivals: list[int] = []

    async def handle(order: Order, command: PayOrder, context: CommandContext) -> int:
        arrivals.append(command.cents)
        before = order.stream_version
        await anyio.lowlevel.checkpoint()  # others would get in between here
        order.emit(OrderPaid(cents=command.cents))
        return before

    bench = bench_of(handle)
    results: dict[int, int] = {}

    async def publish(number: int) -> None:
        results[number] = await bench.bus.publish(PayOrder(aggregate_id=ORDER, cents=number))

    async with anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(publish, number)

    assert arrivals == list(range(100))
    assert results == {number: number for number in range(100)}
    assert store_of(bench).tries == 100


async def test_handlers_that_publish_to_each_others_aggregates_do_not_wait_for_ever() -> None:
    """Nor does one that publishes to its own; each conflict is found by the store and tried again."""
    other, both = OrderId.new(), anyio.Event()
    started: list[OrderId] = []

    async def place_and_pay(order: Order, command: PlaceOrder, context: CommandContext) -> int:
        if order.is_new:
            started.append(order.id)
            if len(started) == 2:
                both.set()
            await both.wait()
            for paid in (ORDER, other):
                await (await context.services.aget(CommandBus)).publish(PayOrder(aggregate_id=paid))
        order.emit(OrderPlaced(total_cents=order.paid_cents))
        return order.paid_cents

    bench = bench_of(place_and_pay, pay)

    async def publish_both() -> None:
        async with anyio.create_task_group() as group:
            for order_id in (ORDER, other):
                group.start_soon(bench.bus.publish, PlaceOrder(aggregate_id=order_id, total_cents=0))

    await in_time(bench, publish_both)

    for order_id in (ORDER, other):
        assert await names(bench, StreamId("Order", order_id)) == ["OrderPaid", "OrderPaid", "OrderPlaced"]


async def test_same_source_id_again_is_refused_with_the_first_result() -> None:
    """The handler does not run; the error says who has had which operation, and what it returned."""
    bench = bench_of(place)
    command = PlaceOrder(aggregate_id=ORDER, total_cents=7, source_id=SourceId("web-1"))
    await bench.bus.publish(command)

    with pytest.raises(DuplicateOperationError) as caught:
        await bench.bus.publish(command)

    assert str(caught.value) == f"Order {ORDER} has had operation 'web-1' already; it returned 0"
    assert (caught.value.source_id, caught.value.result) == ("web-1", 0)
    assert await names(bench) == ["OrderPlaced"]


async def test_same_source_id_of_another_command_on_the_aggregate_is_the_same_operation() -> None:
    """The first result is shown as it was stored, as it is not of this command's type."""

    async def cancel(order: Order, command: CancelOrder, context: CommandContext) -> None:
        order.emit(OrderClosed())

    bench = bench_of(place, cancel)
    await bench.bus.publish(PlaceOrder(aggregate_id=ORDER, total_cents=7, source_id=SourceId("web-1")))

    with pytest.raises(DuplicateOperationError) as caught:
        await bench.bus.publish(CancelOrder(aggregate_id=ORDER, source_id=SourceId("web-1")))

    assert caught.value.result == "0"
    assert await names(bench) == ["OrderPlaced"]


async def test_same_source_id_on_another_aggregate_is_another_operation() -> None:
    """On another of its type, or on another type under the same id, or of a command without one."""

    class Cart(Aggregate[OrderId]):
        @applies
        def _paid(self, event: OrderPaid) -> None: ...

    async def into_cart(cart: Cart, command: PayOrder, context: CommandContext) -> int:
        cart.emit(OrderPaid(cents=1))
        return 1

    async def rebuild(command: RebuildIndex, context: CommandContext) -> str:
        return "done"

    bench, source_id = bench_of(place, into_cart, rebuild), SourceId("web-1")

    await bench.bus.publish(PlaceOrder(aggregate_id=ORDER, total_cents=7, source_id=source_id))
    await bench.bus.publish(PlaceOrder(aggregate_id=OrderId.new(), total_cents=7, source_id=source_id))
    assert await bench.bus.publish(PayOrder(aggregate_id=ORDER, source_id=source_id)) == 1
    assert await bench.bus.publish(RebuildIndex(source_id=source_id)) == "done"


async def test_same_operation_at_the_same_time_is_done_once() -> None:
    """Both handlers have run when the second finds out; it gets the first result, and what it scheduled is dropped."""
    both = anyio.Event()
    runs: list[int] = []

    async def rebuild(command: RebuildIndex, context: CommandContext) -> str:
        runs.append(len(runs))
        number = runs[-1]
        context.schedule(Act(number=number), delay=LATER)
        if len(runs) == 2:
            both.set()
        await both.wait()
        return f"run {number}"

    bench, command = bench_of(rebuild), RebuildIndex()
    results: list[Any] = []

    async def publish() -> None:
        try:
            results.append(await bench.bus.publish(command))
        except DuplicateOperationError as exc:
            results.append(("duplicate", exc.result))

    async with anyio.create_task_group() as group:
        group.start_soon(publish)
        group.start_soon(publish)

    [done] = [result for result in results if isinstance(result, str)]
    assert results.count(("duplicate", done)) == 1
    assert runs == [0, 1]
    assert len(await bench.store.find()) == 1


async def test_duplicate_in_a_job_is_a_success_and_changes_nothing() -> None:
    """The effect is there already: the job ends well, and nothing is done twice."""
    runs: list[int] = []

    async def handle(order: Order, command: PlaceOrder, context: CommandContext) -> int:
        runs.append(1)
        context.schedule(Act(), delay=LATER)
        return await place(order, command, context)

    flow = EventFlow("orders")
    flow.job(Act)
    flow.command_handler(handle)
    command = PlaceOrder(aggregate_id=ORDER, total_cents=7)

    async with flow.open("memory:", clock=ManualClock()) as app:
        await app.commands.publish(command)
        job_id = await app.commands.schedule(command)
        assert await app.run_due() == 1
        record = await app.jobs.get(job_id)
        events = await app.events.load(STREAM)
        followed = await app.jobs.find(name="Act")

    assert record is not None
    assert (record.state, len(events), len(followed), runs) == (JobState.SUCCEEDED, 1, 1, [1])


async def test_duplicate_of_another_command_is_not_taken_for_ones_own() -> None:
    """
    A handler that lets the error of a command it published pass has failed: it is not done, and nothing is lost.

    Else its job would count as a success, and a caller would take the command for done.
    """

    async def handle(order: Order, command: PlaceOrder, context: CommandContext) -> int:
        await place(order, command, context)
        bus = await context.services.aget(CommandBus)
        return await bus.publish(PayOrder(aggregate_id=order.id, source_id=SourceId("paid once")))

    bench = bench_of(handle, pay)
    await bench.bus.publish(PayOrder(aggregate_id=ORDER, source_id=SourceId("paid once")))
    command = PlaceOrder(aggregate_id=ORDER, total_cents=7)

    settlement = await bench.run(command)
    with pytest.raises(EventFlowError, match=r"handle did not catch: .*'paid once' already") as caught:
        await bench.bus.publish(command)

    assert settlement.outcome is Outcome.RETRY
    assert not isinstance(caught.value, DuplicateOperationError)
    assert await names(bench) == ["OrderPaid"]


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


async def test_middleware_goes_around_every_try() -> None:
    """Once per try, around the handler; it may read and add to the context."""
    notes: list[str] = []

    async def around(command: AnyCommand[Any], context: CommandContext, call_next: CallNext) -> Any:
        notes.append("in")
        result = await call_next(command)
        notes.append("out")
        return result

    bench = bench_of(pay, middleware=(around,))
    store_of(bench).others = 2

    await in_time(bench, lambda: bench.bus.publish(PayOrder(aggregate_id=ORDER)))

    assert notes == ["in", "out"] * 3


async def test_middleware_that_raises_afterwards_stores_nothing() -> None:
    """The commit comes after all of it."""

    async def refuse(command: AnyCommand[Any], context: CommandContext, call_next: CallNext) -> Any:
        await call_next(command)
        raise DomainError("not today")

    bench = bench_of(place, middleware=(refuse,))
    command = PlaceOrder(aggregate_id=ORDER, total_cents=1)

    with pytest.raises(DomainError, match="not today"):
        await bench.bus.publish(command)

    assert (await names(bench), store_of(bench).tries) == ([], 0)


async def failing_at_first(order: Order, command: PayOrder, context: CommandContext) -> int:
    """Fails after it has done everything, until middleware has scheduled something."""
    order.emit(OrderPaid(cents=command.cents))
    context.schedule(Act(number=1), delay=LATER)
    context.schedule_deadline("payment", command, delay=LATER)
    if command.cents == 1:
        raise TimeoutError
    return order.paid_cents


async def test_answer_of_middleware_for_a_failed_handler_stores_nothing_of_it() -> None:
    """Events, jobs and deadlines of the handler are gone; the answer is the operation's result."""

    async def answer(command: AnyCommand[Any], context: CommandContext, call_next: CallNext) -> Any:
        try:
            return await call_next(command)
        except TimeoutError:
            context.schedule(Act(number=99), delay=LATER)
            return -1

    bench = bench_of(failing_at_first, middleware=(answer,))
    command = PayOrder(aggregate_id=ORDER)
    await bench.bus.publish(PayOrder(aggregate_id=ORDER, cents=2))
    before = await bench.store.find()  # a job, and the deadline, which the failed handler would have replaced

    assert await bench.bus.publish(command) == -1

    job, *others = await bench.store.find()
    assert (others, job.payload) == (before, {"number": 99})
    assert await names(bench) == ["OrderPaid"]
    with pytest.raises(DuplicateOperationError):
        await bench.bus.publish(command)


async def test_middleware_may_try_a_failed_handler_again() -> None:
    """On a fresh aggregate, as after a conflict: what the failed run emitted is not stored twice, or at all."""

    async def again(command: AnyCommand[Any], context: CommandContext, call_next: CallNext) -> Any:
        try:
            return await call_next(command)
        except TimeoutError:
            return await call_next(PayOrder(aggregate_id=ORDER, cents=2, source_id=command.source_id))

    bench = bench_of(failing_at_first, middleware=(again,))

    assert await bench.bus.publish(PayOrder(aggregate_id=ORDER)) == 2

    [event] = await bench.events.load(STREAM)
    assert event.data == '{"cents":2}'
    assert len(await bench.store.find()) == 2


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


async def test_command_whose_job_has_no_more_attempts_keeps_the_reason() -> None:
    """A conflict that lasts is an attempt of the job that failed."""
    flow = EventFlow("orders")
    flow.command_handler(retry=RetryPolicy(max_attempts=1))(pay)
    bench = Bench(flow, events=Contended)
    store_of(bench).others = 6

    settlement = await in_time(bench, lambda: bench.run(PayOrder(aggregate_id=ORDER)))

    assert settlement.outcome is Outcome.DEAD
    assert error_of(settlement)["message"] == f"Order {ORDER} has changed since version 5"


async def test_waiting_for_others_pauses_is_cancelled_with_the_caller() -> None:
    """A cancelled publish stores nothing, and the next in line goes on."""
    inside, waiting = anyio.Event(), anyio.CancelScope()

    async def handle(order: Order, command: PayOrder, context: CommandContext) -> int:
        if command.cents == 1:
            inside.set()
            await anyio.sleep_forever()
        return await pay(order, command, context)

    bench = bench_of(handle)

    async def publish_and_give_up() -> None:
        with waiting:
            await bench.bus.publish(PayOrder(aggregate_id=ORDER, cents=1))

    async with anyio.create_task_group() as group:
        group.start_soon(publish_and_give_up)
        await inside.wait()
        group.start_soon(bench.bus.publish, PayOrder(aggregate_id=ORDER, cents=2))
        await others_rest()
        assert await names(bench) == []
        waiting.cancel()

    [event] = await bench.events.load(STREAM)
    assert event.data == '{"cents":2}'


@pytest.mark.parametrize("where", ["loading", "handling", "told"])
async def test_command_is_cancelled_up_to_its_commit_and_whole_from_there(where: str) -> None:
    """Before it is written, nothing of it is; and then all of it."""
    reached = anyio.Event()

    async def pause(here: str) -> None:
        if here == where:
            reached.set()
        await anyio.lowlevel.checkpoint()

    class SlowStore(Contended):
        async def look(self, stream: StreamId | None, receipt: ReceiptKey, **options: Any) -> History:
            await pause("loading")
            return await super().look(stream, receipt, **options)

    async def handle(order: Order, command: PlaceOrder, context: CommandContext) -> int:
        context.schedule(Act(), delay=LATER)
        result = await place(order, command, context)
        await pause("handling")
        return result

    async def tell(changes: Changes) -> None:
        await pause("told")

    flow = EventFlow("execution")
    flow.command_handler(handle)
    bench = Bench(flow, events=SlowStore)
    bench.units = UnitsOfWork(bench.encoder, bench.events, InMemoryCommits(bench.store, bench.events), committed=tell)
    bench.bus = CommandBus(bench.model.handlers, bench.bus._execution, new_unit=bench.units)
    command = PlaceOrder(aggregate_id=ORDER, total_cents=1)

    async with anyio.create_task_group() as group:
        group.start_soon(bench.bus.publish, command)
        await reached.wait()
        group.cancel_scope.cancel()

    written = where == "told"
    assert (len(await names(bench)), len(await bench.store.find())) == (written, written)
    if written:
        with pytest.raises(DuplicateOperationError):
            await bench.bus.publish(command)
    else:
        assert await bench.bus.publish(command) == 0


async def test_conflict_that_an_inline_subscriber_raises_does_not_run_the_command_again() -> None:
    """The command is done: its events are there once, and it was told once."""
    told: list[int] = []
    flow = EventFlow("orders")
    flow.raise_inline_errors = True
    flow.command_handler(place)

    @flow.subscriber(inline=True)
    async def tell(event: OrderPlaced, context: SubscriberContext) -> None:
        told.append(context.stream_version)
        raise OptimisticConcurrencyError("other", 1)

    async with flow.open("memory:") as app:
        command = PlaceOrder(aggregate_id=ORDER, total_cents=7)
        with pytest.raises(ExceptionGroup) as caught:
            await app.commands.publish(command)
        with pytest.raises(DuplicateOperationError):
            await app.commands.publish(command)

        assert caught.group_contains(OptimisticConcurrencyError)
        assert (told, len(await app.events.load(STREAM))) == ([1], 1)


class Ask(StandaloneCommand[int | None]):
    """Its result is one of two types."""


async def test_result_of_a_wrong_type_names_the_handler() -> None:
    """Also where the declared type is a union; nothing is stored."""

    async def answer(command: Ask, context: CommandContext) -> int | None:
        return "seven"  # pyright: ignore[reportReturnType]

    with pytest.raises(InvalidMessageError, match=r"Ask cannot be stored: .*answer returned 'seven': Expected `int"):
        await bench_of(answer).bus.publish(Ask())


async def test_result_of_another_command_is_shown_where_a_union_was_declared() -> None:
    """Two commands with one source id: the first result cannot be read as the second's, and is shown as it is."""

    class Tell(Command[OrderId, str]):
        pass

    class Count(Command[OrderId, int | None]):
        pass

    async def tell(order: Order, command: Tell, context: CommandContext) -> str:
        return "told"

    async def count(order: Order, command: Count, context: CommandContext) -> int | None:
        return 1

    bench = bench_of(tell, count)
    await bench.bus.publish(Tell(aggregate_id=ORDER, source_id=SourceId("web-1")))

    with pytest.raises(DuplicateOperationError, match="it returned '\"told\"'"):
        await bench.bus.publish(Count(aggregate_id=ORDER, source_id=SourceId("web-1")))
