"""Subscribers that take events in order get those from before: where they stand meanwhile, and what they pass over."""

from uuid import UUID

import anyio
import pytest

from eventflow import (
    App,
    JobState,
    OnError,
    RetryPolicy,
)
from eventflow.postgres import Connection
from eventflow.postgres.statements import statement
from tests.support.journal import ended, in_state
from tests.support.tallies import (
    COMMITS_THAT_WAIT,
    ONCE,
    SWEEPING,
    Add,
    Desk,
    RefusedError,
    TallyId,
    all_is_done,
    flow_of,
    job_of,
    without_subscriber,
)
from tests.support.waiting import eventually, until


async def older_events(dsn: str, desk: Desk, *tallies: TallyId) -> None:
    """Two events of each, from before the subscriber."""
    async with without_subscriber(desk).open(dsn) as old:
        for tally in tallies:
            await old.commands.publish(Add(aggregate_id=tally, marks="++"))


async def caught_up(app: App) -> int:
    """Catch up; how many jobs were made."""
    return [progress.jobs_made async for progress in app.catch_up("note")][-1]


@pytest.mark.parametrize("state", ["waits", "runs"])
async def test_line_goes_back_to_older_events(
    state: str, dsn: str, admin: Connection, desk: Desk, tally: TallyId
) -> None:
    """Its own job takes its turn by itself, and once; behind it nothing comes before the older events."""
    await older_events(dsn, desk, tally)
    go_on = desk.hold(tally, 3)
    async with flow_of(desk).open(dsn) as app:
        await app.commands.publish(Add(aggregate_id=tally, marks="++"))
        if state == "waits":
            assert await caught_up(app) == 1
        async with app.worker():
            await desk.until_started(tally, 3)
            if state == "runs":
                assert await caught_up(app) == 1
            await until(lambda: desk.of(tally) == [1, 2])
            go_on.set()
            await all_is_done(admin)
        assert await caught_up(app) == 0
    assert desk.of(tally) == [1, 2, 3, 4]
    assert len(desk.started) == 4


async def test_job_that_ends_while_its_line_is_elsewhere_makes_no_other(
    dsn: str, admin: Connection, desk: Desk, tally: TallyId
) -> None:
    """The line has gone back, and comes by the next event in its turn, not before the older ones."""
    await older_events(dsn, desk, tally)
    first, third = desk.hold(tally, 1), desk.hold(tally, 3)
    async with flow_of(desk).open(dsn) as app, app.worker():
        await app.commands.publish(Add(aggregate_id=tally, marks="++"))
        await desk.until_started(tally, 3)
        live = await job_of(dsn, tally, 3)
        await caught_up(app)
        await desk.until_started(tally, 1)
        third.set()
        await ended(app, live)
        assert await admin.fetchval("SELECT NOT EXISTS (SELECT FROM eventflow.job)")
        first.set()
        await all_is_done(admin)
    assert desk.of(tally) == [3, 1, 2, 4]


@pytest.mark.parametrize("how", ["cancelled", "ignored"])
async def test_catch_up_passes_over_what_has_ended(
    how: str, dsn: str, *, admin: Connection, desk: Desk, tally: TallyId
) -> None:
    """Cancelled and ignored events do not come again."""
    await older_events(dsn, desk, tally)
    desk.failures[tally, 3] = [RefusedError()]
    async with flow_of(desk, retry=RetryPolicy(on={RefusedError: OnError.IGNORE})).open(dsn) as app:
        await app.commands.publish(Add(aggregate_id=tally, marks="++"))
        if how == "cancelled":
            await app.jobs.cancel(await job_of(dsn, tally, 3))
        async with app.worker(SWEEPING):
            await all_is_done(admin)
            await caught_up(app)
            await all_is_done(admin)
        passing = [job for job in await app.jobs.find(queue="lines") if job.payload["passes_over"]]
        assert len(passing) == 1, "that of the sweep, before"
    assert desk.of(tally) == [4, 1, 2]
    assert len(desk.started) == (3 if how == "cancelled" else 4)


async def test_catch_up_stands_at_a_dead_letter(dsn: str, admin: Connection, desk: Desk, tally: TallyId) -> None:
    """It has failed, which is not to have been dealt with; its deletion by hand lets the line go on."""
    await older_events(dsn, desk, tally)
    desk.failures[tally, 3] = [ZeroDivisionError()]
    async with flow_of(desk, retry=ONCE).open(dsn) as app, app.worker(SWEEPING):
        await app.commands.publish(Add(aggregate_id=tally, marks="++"))
        dead = await job_of(dsn, tally, 3)
        await in_state(app, dead, JobState.DEAD)
        await caught_up(app)

        async def stands_there() -> bool:
            found = await admin.fetchval("SELECT job_id FROM eventflow.event_line WHERE stream_version = 3")
            return bool(found == UUID(dead.uuid))

        await eventually(stands_there)
        assert await admin.fetchval("SELECT eventflow.mend_lines()") == 0
        assert desk.of(tally) == [1, 2]
        await admin.execute("DELETE FROM eventflow.dead_letter")
        await all_is_done(admin)
    assert desk.of(tally) == [1, 2, 4]


async def test_catch_up_that_waits_for_one_line_does_not_set_back_another(
    dsn: str, admin: Connection, desk: Desk
) -> None:
    """What a subscriber comes by while the page waits is not dealt with again."""
    locked, moving = sorted([TallyId.new(), TallyId.new()])
    async with flow_of(desk).open(dsn) as app:
        for tally in (locked, moving):
            await app.commands.publish(Add(aggregate_id=tally, marks="+++"))
        go_on = [desk.hold(locked, 1), desk.hold(moving, 1), desk.hold(moving, 3)]
        async with app.worker(), anyio.create_task_group() as group:
            await desk.until_started(locked, 1)
            await desk.until_started(moving, 1)
            async with admin.transaction():
                await admin.execute("SELECT FROM eventflow.event_line WHERE aggregate_id = $1 FOR UPDATE", locked)
                group.start_soon(caught_up, app)
                await eventually(lambda: _waits(admin, "save_catch_up"))
                go_on[1].set()
                await desk.until_started(moving, 3)
            for each in go_on:
                each.set()
            await all_is_done(admin)
    assert sorted(desk.started) == sorted((tally, number) for tally in (locked, moving) for number in (1, 2, 3))


async def _waits(admin: Connection, name: str) -> bool:
    await admin.execute("SELECT pg_stat_clear_snapshot()")
    waiting = await admin.fetchval(COMMITS_THAT_WAIT, statement(name)[:100])
    return bool(waiting)
