"""The slots that jobs run in."""

import asyncio
from contextvars import ContextVar

import anyio
import anyio.lowlevel
import pytest

from eventflow import EventFlow, JobContext, RetryPolicy
from eventflow.jobs.records import Outcome
from eventflow.jobs.worker.slots import TURN_SECONDS
from tests.unit.bench import Act, others_rest
from tests.unit.slot_rig import Gate, Rig


async def test_no_more_jobs_run_than_there_are_slots() -> None:
    """Jobs beyond the slots stand in line, and follow in order as slots are freed."""
    gate = Gate()
    rig = Rig(gate.behaviour, concurrency=3)
    claims = [rig.bench.claim() for _ in range(10)]

    async with rig.open():
        rig.slots.put(claims)
        await others_rest()
        assert (gate.inside, rig.slots.free, rig.slots.in_line) == (3, 0, 7)
        assert set(rig.slots.ids()) == {claim.id for claim in claims}
        gate.opened.set()
        assert await rig.slots.wait_until_idle(1)

    assert gate.most == 3
    assert gate.order == [claim.id for claim in claims]
    assert rig.outcomes == [Outcome.SUCCEEDED] * 10
    assert (rig.slots.free, rig.slots.in_line, rig.finished) == (3, 0, 10)
    assert rig.freed >= 10
    assert list(rig.slots.ids()) == []


async def test_job_that_stands_in_line_too_long_is_given_back() -> None:
    """A due job without a slot goes back to the store when its patience ends; one that runs does not."""
    gate = Gate()
    rig = Rig(gate.behaviour, concurrency=1)
    first, second, third = (rig.bench.claim() for _ in range(3))

    async with rig.open():
        rig.slots.put([first, second])
        await others_rest()
        rig.bench.clock.advance(0.03)
        rig.slots.put([third])
        await others_rest()
        rig.bench.clock.advance(0.019)
        await others_rest()
        assert rig.completions.settlements == []
        rig.bench.clock.advance(0.001)
        await others_rest()
        assert [s.claim for s in rig.completions.settlements] == [second]
        rig.bench.clock.advance(0.03)
        await others_rest()

    assert [s.claim for s in rig.completions.settlements[:2]] == [second, third]
    assert rig.outcomes[:2] == [Outcome.RELEASED] * 2
    assert rig.completions.settlements[0].started_us is None


async def test_job_given_twice_is_found_until_both_have_ended() -> None:
    """A store that forgot that this worker has it gives it once more: the end of one does not hide the other."""
    gate = Gate()
    rig = Rig(gate.behaviour, concurrency=2)
    claim = rig.bench.claim()

    async with rig.open():
        rig.slots.put([claim])
        await others_rest()
        first = rig.slots.find(claim.id)
        rig.slots.put([claim])
        await others_rest()
        second = rig.slots.find(claim.id)
        assert first is not None
        first.cancel(Outcome.RELEASED)
        await others_rest()
        assert gate.inside == 1
        assert rig.slots.find(claim.id) is second
        rig.slots.cancel_all()
        assert await rig.slots.wait_until_idle(1)

    assert rig.slots.find(claim.id) is None
    assert rig.outcomes == [Outcome.RELEASED] * 2


async def test_job_for_which_there_is_a_slot_is_not_given_back() -> None:
    """However long it takes until it has its turn: in a worker that has just begun, the first steps take long."""
    started = 0

    async def begin_slowly(context: JobContext) -> None:
        nonlocal started
        started += 1
        rig.bench.clock.advance(0.02)
        await gate.opened.wait()

    gate = Gate()
    rig = Rig(begin_slowly, concurrency=50)
    async with rig.open():
        rig.slots.put([rig.bench.claim() for _ in range(50)])
        await others_rest()
        assert started == 50
        gate.opened.set()
        assert await rig.slots.wait_until_idle(1)

    assert rig.outcomes == [Outcome.SUCCEEDED] * 50


async def test_cancelled_job_ends_as_it_was_asked_to() -> None:
    """A job cancelled by somebody ends as cancelled; one cancelled by a stop is released."""
    gate = Gate()
    rig = Rig(gate.behaviour, concurrency=2)
    wanted, other = rig.bench.claim(), rig.bench.claim()

    async with rig.open():
        rig.slots.put([wanted, other])
        await others_rest()
        running = rig.slots.find(wanted.id)
        assert running is not None
        running.cancel(Outcome.CANCELLED)
        await others_rest()
        assert rig.outcomes == [Outcome.CANCELLED]
        assert rig.slots.find(wanted.id) is None
        rig.slots.cancel_all()
        assert await rig.slots.wait_until_idle(1)

    assert rig.outcomes == [Outcome.CANCELLED, Outcome.RELEASED]
    assert rig.slots.free == 2


async def test_cancelled_job_takes_none_of_those_behind_it_along() -> None:
    """They run in the same slot, one by one, and each can be cancelled by itself."""
    gate = Gate()
    rig = Rig(gate.behaviour, concurrency=1)
    first, second, third = claims = [rig.bench.claim() for _ in range(3)]

    async with rig.open():
        rig.slots.put(claims)
        for cancelled in (first, second):
            await others_rest()
            running = rig.slots.find(cancelled.id)
            assert running is not None
            running.cancel(Outcome.CANCELLED)
        await others_rest()
        assert [*rig.slots.ids()] == [third.id]
        gate.opened.set()
        assert await rig.slots.wait_until_idle(1)

    assert rig.outcomes == [Outcome.CANCELLED, Outcome.CANCELLED, Outcome.SUCCEEDED]


async def test_jobs_that_do_not_wait_share_a_task_which_lets_others_go_on() -> None:
    """A task for each would cost more than the job; one for all must not keep the worker from its other duties."""
    tasks, turns, done = set[object](), 0, 0

    async def work(context: JobContext) -> None:
        nonlocal done
        tasks.add(asyncio.current_task())
        rig.bench.clock.advance(TURN_SECONDS / 4)
        done += 1

    async def look_on() -> None:
        nonlocal turns
        while done < 100:
            turns += 1
            await anyio.lowlevel.checkpoint()

    rig = Rig(work, concurrency=10)
    async with rig.open(), anyio.create_task_group() as group:
        group.start_soon(look_on)
        rig.slots.put([rig.bench.claim() for _ in range(100)])
        assert await rig.slots.wait_until_idle(None)

    assert rig.outcomes == [Outcome.SUCCEEDED] * 100
    assert len(tasks) == 1
    assert turns > 100 / 5
    assert rig.slots.free == 10


async def test_jobs_that_wait_keep_the_slots_taken() -> None:
    """A job that ends and the next that begins, again and again: nobody leaves a slot while there is a line."""
    inside, seen = 0, list[int]()

    async def wait_a_little(context: JobContext) -> None:
        nonlocal inside
        inside += 1
        rig.bench.clock.advance(TURN_SECONDS * 2)
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        inside -= 1

    rig = Rig(wait_a_little, concurrency=20)
    async with rig.open():
        rig.slots.put([rig.bench.claim() for _ in range(400)])
        await anyio.lowlevel.checkpoint()
        while rig.slots.in_line:
            seen.append(inside)
            await anyio.lowlevel.checkpoint()
        assert await rig.slots.wait_until_idle(1)

    begun = seen[10:]
    assert sum(begun) / len(begun) > 20 * 0.9


@pytest.mark.parametrize("waits", [False, True])
async def test_job_sees_nothing_of_the_context_of_another(*, waits: bool) -> None:
    """What a handler binds for its logs, or forgets to reset, ends with it."""
    bound: ContextVar[str] = ContextVar("bound", default="nothing")
    seen: list[str] = []

    async def bind(context: JobContext) -> None:
        seen.append(bound.get())
        bound.set(context.job_id)
        if waits:
            await anyio.lowlevel.checkpoint()

    rig = Rig(bind, concurrency=2)
    async with rig.open():
        rig.slots.put([rig.bench.claim() for _ in range(10)])
        assert await rig.slots.wait_until_idle(1)

    assert seen == ["nothing"] * 10
    assert rig.slots.free == 2


async def test_jobs_that_wait_all_have_a_slot_at_once() -> None:
    """However many there are slots for, whatever ran before them."""
    gate = Gate()
    rig = Rig(gate.behaviour, concurrency=200)

    async with rig.open():
        rig.slots.put([rig.bench.claim() for _ in range(200)])
        await others_rest()
        assert (gate.inside, rig.slots.free, rig.slots.in_line) == (200, 0, 0)
        gate.opened.set()
        assert await rig.slots.wait_until_idle(1)

    assert rig.slots.free == 200


async def test_cancelled_job_that_ends_well_has_succeeded() -> None:
    """A handler that finishes in spite of its cancellation has done its work, and it is not done again."""

    async def finish(context: JobContext) -> None:
        with anyio.CancelScope(shield=True):
            await gate.behaviour(context)

    gate = Gate()
    rig = Rig(finish, concurrency=1)

    async with rig.open():
        rig.slots.put([rig.bench.claim()])
        await others_rest()
        rig.slots.cancel_all()
        gate.opened.set()
        assert await rig.slots.wait_until_idle(1)

    assert rig.outcomes == [Outcome.SUCCEEDED]


async def test_cancelled_job_that_raises_while_giving_way_ends_as_it_was_asked_to() -> None:
    """A handler whose clean-up fails after its cancellation burns no attempt, and is not tried again if unwanted."""

    async def fail(context: JobContext) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ConnectionError("closed by the cancellation")

    flow = EventFlow("slots")
    flow.job(retry=RetryPolicy(max_attempts=1))(Act)
    rig = Rig(fail, concurrency=2, flow=flow)
    unwanted, stopped = rig.bench.claim(), rig.bench.claim()

    async with rig.open():
        rig.slots.put([unwanted, stopped])
        await others_rest()
        running = rig.slots.find(unwanted.id)
        assert running is not None
        running.cancel(Outcome.CANCELLED)
        await others_rest()
        rig.slots.cancel_all()
        assert await rig.slots.wait_until_idle(1)

    assert rig.outcomes == [Outcome.CANCELLED, Outcome.RELEASED]


async def test_jobs_in_line_can_be_taken_out() -> None:
    """Jobs that have not started can be taken out of the line, one by its id or all; those that run cannot."""
    gate = Gate()
    rig = Rig(gate.behaviour, concurrency=1)
    claims = [rig.bench.claim() for _ in range(4)]

    async with rig.open():
        rig.slots.put(claims)
        await others_rest()
        assert rig.slots.take(claims[0].id) is None
        assert rig.slots.take(claims[2].id) == claims[2]
        assert rig.slots.take_line() == [claims[1], claims[3]]
        gate.opened.set()
        assert await rig.slots.wait_until_idle(1)

    assert gate.order == [claims[0].id]
    assert rig.slots.free == 1


async def test_waiting_for_idle_slots_is_bounded() -> None:
    """Who waits for jobs that do not end is told so after the time they gave."""
    rig = Rig(Gate().behaviour, concurrency=1)
    idle: list[bool] = []

    async def wait() -> None:
        idle.append(await rig.slots.wait_until_idle(25))

    async with rig.open(), anyio.create_task_group() as group:
        rig.slots.put([rig.bench.claim()])
        await others_rest()
        group.start_soon(wait)
        await others_rest()
        rig.bench.clock.advance(24.9)
        await others_rest()
        assert idle == []
        rig.bench.clock.advance(0.1)

    assert idle == [False]


async def test_job_that_cancels_its_own_task_fails_alone() -> None:
    """A handler that cancels the task it runs in has failed; the slot goes on to the next job."""

    async def cancel_myself(context: JobContext) -> None:
        task = asyncio.current_task()
        assert task is not None
        if context.attempt == 1:
            task.cancel()
            await anyio.sleep_forever()

    rig = Rig(cancel_myself, concurrency=1)

    async with rig.open():
        rig.slots.put([rig.bench.claim(), rig.bench.claim(attempt=2)])
        assert await rig.slots.wait_until_idle(1)

    assert rig.outcomes == [Outcome.RETRY, Outcome.SUCCEEDED]


async def test_exit_inside_a_job_costs_the_worker_nothing() -> None:
    """A job that calls sys.exit fails alone; its slot takes the next job."""

    async def leave(context: JobContext) -> None:
        if context.attempt == 1:
            raise SystemExit(1)

    rig = Rig(leave, concurrency=1)

    async with rig.open():
        rig.slots.put([rig.bench.claim(), rig.bench.claim(attempt=2)])
        assert await rig.slots.wait_until_idle(1)

    assert rig.outcomes == [Outcome.RETRY, Outcome.SUCCEEDED]
