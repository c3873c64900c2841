"""Conflicts: commands on one aggregate take turns, and run again if others got in between all the same."""

from collections import Counter
from itertools import pairwise
from typing import Any

import anyio
import pytest

from eventflow import (
    CommandBus,
    CommandContext,
    DuplicateOperationError,
    EventFlow,
    OptimisticConcurrencyError,
    RetryPolicy,
    StreamId,
    SubscriberContext,
)
from eventflow.jobs import Outcome
from tests.unit.bench import Act, Bench, OrderId, PlaceOrder
from tests.unit.contended import (
    LATER,
    ORDER,
    STREAM,
    Contended,
    PayOrder,
    bench_of,
    in_time,
    names,
    pay,
    place,
    store_of,
)
from tests.unit.test_aggregate import Order, OrderPaid, OrderPlaced
from tests.unit.test_runner import error_of


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


async def test_command_whose_job_has_no_more_attempts_keeps_the_reason() -> None:
    """A conflict that lasts is an attempt of the job that failed."""
    flow = EventFlow("orders")
    flow.command_handler(retry=RetryPolicy(max_attempts=1))(pay)
    bench = Bench(flow, events=Contended)
    store_of(bench).others = 6

    settlement = await in_time(bench, lambda: bench.run(PayOrder(aggregate_id=ORDER)))

    assert settlement.outcome is Outcome.DEAD
    assert error_of(settlement)["message"] == f"Order {ORDER} has changed since version 5"


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
