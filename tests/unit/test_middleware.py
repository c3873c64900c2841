"""Middleware around command handlers: inside every try, before the commit."""

from typing import Any

import pytest

from eventflow import AnyCommand, CommandContext, DomainError, DuplicateOperationError
from eventflow.commands import CallNext
from tests.unit.bench import Act, PlaceOrder
from tests.unit.contended import LATER, ORDER, STREAM, PayOrder, bench_of, in_time, names, pay, place, store_of
from tests.unit.test_aggregate import Order, OrderPaid


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
