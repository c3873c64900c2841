"""Duplicates: the same source id on the same aggregate is the same operation, done once."""

from typing import Any

import anyio
import pytest

from eventflow import (
    Aggregate,
    Command,
    CommandBus,
    CommandContext,
    DuplicateOperationError,
    EventFlow,
    EventFlowError,
    JobState,
    ManualClock,
    SourceId,
    applies,
)
from eventflow.jobs import Outcome
from tests.unit.bench import Act, CancelOrder, OrderId, PlaceOrder, RebuildIndex
from tests.unit.contended import LATER, ORDER, STREAM, PayOrder, bench_of, names, pay, place
from tests.unit.test_aggregate import Order, OrderClosed, OrderPaid


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
