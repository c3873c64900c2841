"""Deadlines: commands to an aggregate's own later self, which it may take back."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio
import pytest

from eventflow import (
    App,
    Command,
    CommandContext,
    DomainError,
    Event,
    EventFlow,
    InvalidScheduleError,
    JobId,
    JobRecord,
    JobState,
    ManualClock,
    StreamId,
)
from tests.unit.bench import Act, CancelOrder, OrderId, others_rest
from tests.unit.test_aggregate import Order, OrderClosed, OrderPaid

ORDER = OrderId("order-0192f0c1-7d3e-7cc1-8f4a-2b1d6f0e9a55")
HALF_AN_HOUR = timedelta(minutes=30)
TICK = timedelta(microseconds=1)

Behaviour = Callable[[Order, CommandContext], Any]


class Do(Command[OrderId]):
    """A command that does what the test says."""

    what: str = ""


class CloseUnpaid(Command[OrderId]):
    """What deadlines do here: close an order that was not paid."""

    said: str = ""


class Shop:
    """An application in memory whose `Do` handler runs the test's functions."""

    def __init__(self, app: App, clock: ManualClock, behaviours: dict[str, Behaviour], closed: list[str]) -> None:
        self.app = app
        self.clock = clock
        self.closed = closed
        self._behaviours = behaviours

    async def do(self, behaviour: Behaviour, aggregate_id: OrderId = ORDER) -> None:
        """Publish a command whose handler is this."""
        command = Do(aggregate_id=aggregate_id, what=str(len(self._behaviours)))
        self._behaviours[command.what] = behaviour
        await self.app.commands.publish(command)

    async def set(self, name: str = "payment", delay: timedelta = HALF_AN_HOUR, said: str = "") -> JobId:
        """Have the order set a deadline."""
        made: list[JobId] = []
        command = CloseUnpaid(aggregate_id=ORDER, said=said or name)
        await self.do(lambda _, context: made.append(context.schedule_deadline(name, command, delay=delay)))
        return made[0]

    async def record(self, job_id: JobId) -> JobRecord:
        """A deadline's job."""
        record = await self.app.jobs.get(job_id)
        assert record is not None
        return record

    async def events(self) -> list[str]:
        """What has happened to the order."""
        return [event.name for event in await self.app.events.load(StreamId("Order", ORDER))]


@asynccontextmanager
async def opened(on_close: Behaviour | None = None, *, address: str = "memory:") -> AsyncGenerator[Shop]:
    """A shop; *on_close* replaces what the deadline's handler does."""
    flow, clock, closed = EventFlow("shop"), ManualClock(), list[str]()
    behaviours: dict[str, Behaviour] = {}

    @flow.command_handler
    async def do(order: Order, command: Do, context: CommandContext) -> None:
        result = behaviours[command.what](order, context)
        if result is not None and not isinstance(result, str):
            await result

    @flow.command_handler
    async def close_unpaid(order: Order, command: CloseUnpaid, context: CommandContext) -> None:
        if on_close is not None:
            on_close(order, context)
        closed.append(command.said)
        order.emit(OrderClosed())

    assert do is not close_unpaid
    flow.job(Act)
    async with flow.open(address, clock=clock) as app:
        yield Shop(app, clock, behaviours, closed)


def emitting(event: Event) -> Behaviour:
    """A handler that emits."""
    return lambda order, _: order.emit(event)


def cancelling(name: str = "payment") -> Behaviour:
    """A handler that cancels a deadline."""
    return lambda _, context: context.cancel_deadline(name)


async def test_deadline_comes_about_at_its_time() -> None:
    """Not a microsecond before; once; the job that brought it has succeeded."""
    async with opened() as shop:
        job_id = await shop.set()
        shop.clock.advance(HALF_AN_HOUR - TICK)
        assert await shop.app.run_due() == 0
        shop.clock.advance(TICK)
        assert await shop.app.run_due() == 1

        shop.clock.advance(HALF_AN_HOUR)
        assert await shop.app.run_due() == 0
        assert await shop.events() == ["OrderClosed"]
        assert (await shop.record(job_id)).state is JobState.SUCCEEDED


async def test_deadline_that_is_set_anew_comes_about_once_at_its_new_time() -> None:
    """The one before is gone, whether the new one is later or earlier; others of the aggregate stay."""
    async with opened() as shop:
        first = await shop.set(said="first")
        await shop.set("shipping", said="shipping")
        later = await shop.set(delay=2 * HALF_AN_HOUR, said="later")
        assert await shop.app.jobs.get(first) is None

        shop.clock.advance(HALF_AN_HOUR)
        await shop.app.run_due()
        assert shop.closed == ["shipping"]
        await shop.set(delay=timedelta(minutes=1), said="earlier")
        shop.clock.advance(HALF_AN_HOUR)
        await shop.app.run_due()

        assert shop.closed == ["shipping", "earlier"]
        assert await shop.app.jobs.get(later) is None


async def test_cancelled_deadline_does_not_come_about() -> None:
    """Its job is gone at once. Cancelling what is not there, or no more, does nothing."""
    async with opened() as shop:
        await shop.do(cancelling())
        job_id = await shop.set()
        await shop.do(cancelling("shipping"))
        await shop.do(cancelling())

        assert await shop.app.jobs.get(job_id) is None
        shop.clock.advance(HALF_AN_HOUR)
        assert await shop.app.run_due() == 0
        await shop.do(cancelling())
        assert shop.closed == []


@pytest.mark.parametrize("error", [DomainError("no"), ZeroDivisionError()], ids=repr)
async def test_failed_command_leaves_deadlines_as_they_were(error: Exception) -> None:
    """What it set does not come about, and what it cancelled does."""

    def change_and_fail(order: Order, context: CommandContext) -> None:
        context.cancel_deadline("payment")
        context.schedule_deadline("shipping", CloseUnpaid(aggregate_id=ORDER, said="shipping"), delay=HALF_AN_HOUR)
        raise error

    async with opened() as shop:
        await shop.set()
        with pytest.raises(type(error)):
            await shop.do(change_and_fail)
        shop.clock.advance(HALF_AN_HOUR)
        await shop.app.run_due()

        assert shop.closed == ["payment"]


@pytest.mark.parametrize("how", ["cancelled", "replaced"])
async def test_deadline_that_is_taken_back_while_its_job_is_claimed_changes_nothing(how: str) -> None:
    """
    Whichever is committed first wins: here the command that takes it back, for which the deadline has waited.

    The deadline's job ends as cancelled; nothing that its handler did is stored.
    """
    inside, go_on = anyio.Event(), anyio.Event()

    async def take_back(order: Order, context: CommandContext) -> None:
        inside.set()
        await go_on.wait()
        order.emit(OrderPaid(cents=1))
        if how == "cancelled":
            context.cancel_deadline("payment")
        else:
            context.schedule_deadline("payment", CloseUnpaid(aggregate_id=ORDER, said="new"), delay=HALF_AN_HOUR)

    async with opened() as shop, anyio.create_task_group() as group:
        job_id = await shop.set(said="old")
        shop.clock.advance(HALF_AN_HOUR)
        group.start_soon(shop.do, take_back)
        await inside.wait()
        group.start_soon(shop.app.run_due)
        await others_rest()
        assert (await shop.record(job_id)).state is JobState.RUNNING
        go_on.set()
        await others_rest()

        assert (await shop.record(job_id)).state is JobState.CANCELLED
        assert await shop.events() == ["OrderPaid"]
        shop.clock.advance(HALF_AN_HOUR)
        await shop.app.run_due()
        assert await shop.events() == ["OrderPaid"] + ["OrderClosed"] * (how == "replaced")


async def test_deadline_changed_twice_in_one_command_is_as_it_was_last() -> None:
    """What was set in between leaves no job behind."""

    def change(order: Order, context: CommandContext) -> None:
        for said in ("first", "second"):
            command = CloseUnpaid(aggregate_id=ORDER, said=said)
            context.schedule_deadline("payment", command, delay=HALF_AN_HOUR)
            context.schedule_deadline("shipping", command, delay=HALF_AN_HOUR)
        context.cancel_deadline("shipping")

    async with opened() as shop:
        await shop.do(change)
        assert len(await shop.app.jobs.find()) == 1
        shop.clock.advance(HALF_AN_HOUR)
        await shop.app.run_due()

        assert shop.closed == ["second"]


async def test_deadline_that_comes_first_wins() -> None:
    """The command that would have taken it back finds what it has done."""
    async with opened() as shop:
        await shop.set()
        shop.clock.advance(HALF_AN_HOUR)
        await shop.app.run_due()
        seen: list[bool] = []
        await shop.do(lambda order, context: (seen.append(order.is_closed), context.cancel_deadline("payment"))[1])

        assert seen == [True]
        assert await shop.events() == ["OrderClosed"]


async def test_deadline_may_set_itself_anew() -> None:
    """Its own command sets the next one, under the same name; a retry of it changes nothing about that."""
    failures = [ZeroDivisionError()]

    def remind(order: Order, context: CommandContext) -> None:
        if len(order.notes) < 2:
            command = CloseUnpaid(aggregate_id=order.id, said=f"reminder {len(order.notes) + 2}")
            context.schedule_deadline("payment", command, delay=HALF_AN_HOUR)
        if order.notes and failures:
            raise failures.pop()

    async with opened(remind) as shop:
        await shop.set(said="reminder 1")
        for expected in (1, 1, 2, 3):
            shop.clock.advance(HALF_AN_HOUR)
            await shop.app.run_due()
            assert len(shop.closed) == expected

        assert shop.closed == ["reminder 1", "reminder 2", "reminder 3"]
        assert failures == []


async def test_deadline_may_cancel_itself_and_others() -> None:
    """Its own name is free by then: cancelling it does nothing."""

    def clear(order: Order, context: CommandContext) -> None:
        context.cancel_deadline("payment")
        context.cancel_deadline("shipping")

    async with opened(clear) as shop:
        await shop.set("payment")
        await shop.set("shipping", delay=2 * HALF_AN_HOUR)
        shop.clock.advance(2 * HALF_AN_HOUR)

        assert await shop.app.run_due() == 1
        assert shop.closed == ["payment"]


async def test_refused_deadline_is_a_dead_letter_and_may_be_set_again() -> None:
    """As any job whose command is refused."""
    refusals = [DomainError("not now")]

    def refuse_once(order: Order, context: CommandContext) -> None:
        if refusals:
            raise refusals.pop()

    async with opened(refuse_once) as shop:
        job_id = await shop.set(said="refused")
        shop.clock.advance(HALF_AN_HOUR)
        await shop.app.run_due()
        assert (await shop.record(job_id)).state is JobState.DEAD
        await shop.set(said="again")
        shop.clock.advance(HALF_AN_HOUR)
        await shop.app.run_due()

        assert shop.closed == ["again"]
        assert (await shop.record(job_id)).state is JobState.DEAD


async def test_deadlines_of_two_aggregates_do_not_meet() -> None:
    """A name is the aggregate's own."""
    other = OrderId.new()
    async with opened() as shop:
        await shop.set()
        await shop.do(cancelling(), other)
        await shop.do(
            lambda _, c: c.schedule_deadline("payment", CloseUnpaid(aggregate_id=other, said="other"), delay=TICK),
            other,
        )
        shop.clock.advance(HALF_AN_HOUR)
        await shop.app.run_due()

        assert sorted(shop.closed) == ["other", "payment"]


MINE = CloseUnpaid(aggregate_id=ORDER)
WRONG: dict[str, tuple[str, Any, timedelta, str]] = {
    "no-command": ("payment", Act(), TICK, "'payment': only a command"),
    "empty": ("", MINE, TICK, "deadline='': 1 to 100 characters"),
    "long": ("x" * 101, MINE, TICK, "1 to 100 characters"),
    "nul": ("a\0b", MINE, TICK, "without NUL"),
    "surrogate": ("\ud800", MINE, TICK, "not valid Unicode"),
    "past": ("payment", MINE, -TICK, "is negative"),
}


@pytest.mark.parametrize(("name", "command", "delay", "said"), WRONG.values(), ids=WRONG.keys())
async def test_deadline_that_makes_no_sense_is_refused_where_it_is_set(
    name: str, command: Any, delay: timedelta, said: str
) -> None:
    """The handler gets the error at that line; one that goes on has set nothing."""

    def set_wrongly(order: Order, context: CommandContext) -> None:
        with pytest.raises(InvalidScheduleError, match=said):
            context.schedule_deadline(name, command, delay=delay)

    async with opened() as shop:
        await shop.do(set_wrongly)
        assert await shop.app.jobs.find() == []


@pytest.mark.parametrize("cancelled", [False, True], ids=["kept", "cancelled"])
async def test_deadline_may_publish_a_command_for_another_aggregate(cancelled: bool) -> None:
    """It belongs to who has set it; a saga sets one for its order."""
    other = OrderId.new()

    def set_it(order: Order, context: CommandContext) -> None:
        context.schedule_deadline("payment", CloseUnpaid(aggregate_id=other, said="other's"), delay=HALF_AN_HOUR)

    async with opened() as shop:
        await shop.do(set_it)
        if cancelled:
            await shop.do(lambda order, context: context.cancel_deadline("payment"))
        shop.clock.advance(HALF_AN_HOUR)
        await shop.app.run_due()

        assert shop.closed == ([] if cancelled else ["other's"])


async def test_deadline_never_comes_where_jobs_run_at_once() -> None:
    """It would pass before anything could be done to keep it."""
    async with opened(address="instant:") as shop:
        await shop.set()
        await shop.do(cancelling())

        assert (shop.closed, await shop.events()) == ([], [])


async def test_handler_without_an_aggregate_has_no_deadlines() -> None:
    """Its command may address one; without its stream there is nothing that a deadline could belong to."""
    flow = EventFlow("none")

    @flow.command_handler
    async def cancel(command: CancelOrder, context: CommandContext) -> None:
        context.cancel_deadline("payment")

    async with flow.open("memory:", clock=ManualClock()) as app:
        with pytest.raises(InvalidScheduleError, match="'payment': a deadline belongs to an aggregate, and this handl"):
            await app.commands.publish(CancelOrder(aggregate_id=ORDER))
    assert cancel is not None
