"""What ends without going on in line: the stream goes on behind it, unless it is a dead letter."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from eventflow import (
    App,
    JobState,
    OnError,
    RetryPolicy,
)
from eventflow.postgres import Connection
from tests.support.journal import in_state, query
from tests.support.tallies import ONCE, SWEEPING, Add, Desk, RefusedError, TallyId, all_is_done, flow_of, job_of
from tests.support.waiting import until

Trouble = Callable[[App, str, TallyId, Desk], Awaitable[None]]


async def cancelled_while_it_waits(app: App, admin_dsn: str, tally: TallyId, desk: Desk) -> None:
    """Before any worker has come."""
    await app.jobs.cancel(await job_of(admin_dsn, tally, 1))


async def cancelled_while_it_runs(app: App, admin_dsn: str, tally: TallyId, desk: Desk) -> None:
    """Its handler is interrupted."""
    desk.hold(tally, 1)
    async with app.worker():
        await desk.until_started(tally, 1)
        job_id = await job_of(admin_dsn, tally, 1)
        await app.jobs.cancel(job_id)
        await in_state(app, job_id, JobState.CANCELLED)


async def error_ignored(app: App, admin_dsn: str, tally: TallyId, desk: Desk) -> None:
    """Its policy says that it counts as done."""
    desk.failures[tally, 1] = [RefusedError()]
    job_id = await job_of(admin_dsn, tally, 1)
    async with app.worker():
        await in_state(app, job_id, JobState.IGNORED)


async def dead_letter_deleted(app: App, admin_dsn: str, tally: TallyId, desk: Desk) -> None:
    """By hand."""
    desk.failures[tally, 1] = [ZeroDivisionError()] * 3
    job_id = await job_of(admin_dsn, tally, 1)
    async with app.worker():
        await in_state(app, job_id, JobState.DEAD)
    await query(admin_dsn, "DELETE FROM eventflow.dead_letter")


TROUBLES = [cancelled_while_it_waits, cancelled_while_it_runs, error_ignored, dead_letter_deleted]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.__name__)
async def test_stream_goes_on_behind_a_job_that_ended_by_the_way(
    trouble: Trouble, dsn: str, admin_dsn: str, *, admin: Connection, desk: Desk
) -> None:
    """A worker's sweep puts the line on its way again, with the next event; the others have never stopped."""
    other, tally, another = Desk(), TallyId.new(), TallyId.new()
    retry = RetryPolicy(max_attempts=3, base=timedelta(0), on={RefusedError: OnError.IGNORE})
    async with flow_of(desk, other, retry=retry).open(dsn) as app:
        await app.commands.publish(Add(aggregate_id=tally, marks="+.++"))
        await app.commands.publish(Add(aggregate_id=another, marks="++"))
        await trouble(app, admin_dsn, tally, desk)
        async with app.worker(SWEEPING):
            await all_is_done(admin)
    assert [desk.of(tally), desk.of(another), other.of(tally)] == [[3, 4], [1, 2], [1, 3, 4]]


async def test_dead_letter_holds_up_its_own_aggregate_for_its_own_subscriber_alone(
    dsn: str, admin: Connection, desk: Desk, tally: TallyId
) -> None:
    """As long as it is there: no sweep goes on behind it. Once its job succeeds, the events behind it come."""
    other, another = Desk(), TallyId.new()
    desk.failures[tally, 1] = [ZeroDivisionError()]
    async with flow_of(desk, other, retry=ONCE).open(dsn) as app:
        await app.commands.publish(Add(aggregate_id=tally, marks="++"))
        job_id = await job_of(dsn, tally, 1)
        async with app.worker(SWEEPING):
            await in_state(app, job_id, JobState.DEAD)
            await app.commands.publish(Add(aggregate_id=tally))
            await app.commands.publish(Add(aggregate_id=another, marks="+++"))
            await until(lambda: (desk.of(another), other.of(tally)) == ([1, 2, 3], [1, 2, 3]))
            assert await admin.fetchval("SELECT eventflow.mend_lines()") == 0
            assert desk.of(tally) == []
            await admin.execute(DEAD_ONCE_MORE)
            await all_is_done(admin)
    assert desk.of(tally) == [1, 2, 3]


DEAD_ONCE_MORE = """
WITH dead AS (DELETE FROM eventflow.dead_letter RETURNING *)
INSERT INTO eventflow.job (id, queue_id, due_at, ready_at, name, version, payload, headers)
SELECT id, queue_id, now(), now(), name, version, payload, headers FROM dead
"""


async def test_lines_whose_jobs_are_where_they_belong_are_left_alone(
    dsn: str, admin: Connection, desk: Desk, tally: TallyId
) -> None:
    """Whether they wait or run."""
    go_on = desk.hold(tally, 1)
    async with flow_of(desk).open(dsn) as app:
        await app.commands.publish(Add(aggregate_id=tally))
        assert await admin.fetchval("SELECT eventflow.mend_lines()") == 0
        async with app.worker():
            await desk.until_started(tally, 1)
            assert await admin.fetchval("SELECT eventflow.mend_lines()") == 0
            go_on.set()
            await all_is_done(admin)
    assert desk.started == [(tally, 1)]
