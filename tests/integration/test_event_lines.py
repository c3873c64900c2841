"""Subscribers that take events in order: who appends meanwhile, what is tried again, and what is one transaction."""

from contextlib import suppress
from random import Random
from uuid import UUID

import anyio
import pytest

from eventflow import (
    App,
    StreamId,
    SubscriberContext,
    WorkerSettings,
)
from eventflow.postgres import Connection
from tests.support.journal import ended
from tests.support.tallies import (
    LATER,
    Add,
    Desk,
    FollowUp,
    TallyId,
    all_is_done,
    commits_wait,
    flow_of,
    job_of,
    without_subscriber,
)
from tests.support.waiting import until


async def test_line_is_not_left_while_an_append_is_under_way(
    dsn: str, admin: Connection, desk: Desk, tally: TallyId
) -> None:
    """The last job waits for the transaction that has appended, and goes on to the new event."""
    go_on = desk.hold(tally, 1)
    async with flow_of(desk).open(dsn) as app, app.worker():
        await app.commands.publish(Add(aggregate_id=tally))
        await desk.until_started(tally, 1)
        async with app.transaction() as connection:
            await app.commands.publish(Add(aggregate_id=tally), connection=connection)
            go_on.set()
            await commits_wait(admin)
            assert await job_of(dsn, tally, 1)
        await all_is_done(admin)
    assert desk.started == [(tally, 1), (tally, 2)]


async def test_line_goes_on_as_before_where_the_append_is_rolled_back(
    dsn: str, admin: Connection, desk: Desk, tally: TallyId
) -> None:
    """The one who leaves waits to see, and leaves; a later append begins a new line."""
    go_on = desk.hold(tally, 1)
    async with flow_of(desk).open(dsn) as app, app.worker():
        await app.commands.publish(Add(aggregate_id=tally))
        await desk.until_started(tally, 1)
        with suppress(ZeroDivisionError):
            async with app.transaction() as connection:
                await app.commands.publish(Add(aggregate_id=tally), connection=connection)
                go_on.set()
                await commits_wait(admin)
                raise ZeroDivisionError
        await all_is_done(admin)
        await app.commands.publish(Add(aggregate_id=tally))
        await all_is_done(admin)
    assert desk.started == [(tally, 1), (tally, 2)]


async def test_append_waits_for_who_is_about_to_leave_and_begins_a_new_line(
    dsn: str, admin: Connection, desk: Desk, tally: TallyId
) -> None:
    """The line is deleted and not committed, so that nobody may count on it."""
    go_on = desk.hold(tally, 1)
    async with flow_of(desk).open(dsn) as app, app.worker(), anyio.create_task_group() as group:
        await app.commands.publish(Add(aggregate_id=tally))
        await desk.until_started(tally, 1)
        async with admin.transaction():
            await admin.execute("LOCK TABLE eventflow.job_history IN SHARE MODE")  # completions stop at it
            go_on.set()
            await commits_wait(admin)
            group.start_soon(app.commands.publish, Add(aggregate_id=tally))
            await commits_wait(admin, 2)
            assert len(await app.events.load(_stream(tally))) == 1
        await until(lambda: (tally, 2) in desk.seen)
        await all_is_done(admin)
    assert desk.started == [(tally, 1), (tally, 2)]


async def test_line_that_catch_up_has_begun_meanwhile_is_not_left_before_the_append(
    dsn: str, admin: Connection, desk: Desk, tally: TallyId
) -> None:
    """There was none when the append looked, and it has nothing else to lock than what it finds in its place."""
    async with without_subscriber(desk).open(dsn) as old:
        await old.commands.publish(Add(aggregate_id=tally))
    async with flow_of(desk).open(dsn) as app:
        appended, go_on = anyio.Event(), anyio.Event()

        async def append() -> None:
            async with app.transaction() as connection:
                await app.commands.publish(Add(aggregate_id=tally), connection=connection)
                appended.set()
                await go_on.wait()

        async with anyio.create_task_group() as group:
            async with admin.transaction():
                await admin.execute("LOCK TABLE eventflow.event IN SHARE MODE")  # it has looked, and stops here
                group.start_soon(append)
                await commits_wait(admin)
                [_] = [progress async for progress in app.catch_up("note")]
            await appended.wait()
            async with app.worker():
                await desk.until_started(tally, 1)
                await commits_wait(admin)
                go_on.set()
                await all_is_done(admin)
    assert desk.seen == [(tally, 1), (tally, 2)]


async def test_every_wanted_event_is_seen_once_in_order_whoever_appends(
    dsn: str, admin: Connection, desk: Desk
) -> None:
    """Four publishers append to three aggregates, also what is not wanted, while two workers leave and begin lines."""
    tallies = [TallyId.new() for _ in range(3)]
    async with flow_of(desk).open(dsn) as here, flow_of(desk).open(dsn) as there, here.worker(), there.worker():

        async def publish(app: App, seed: int) -> None:
            rng = Random(seed)
            for _ in range(25):
                marks = rng.choice(["+", "+", "++", ".", ".+", "+."])
                await app.commands.publish(Add(aggregate_id=rng.choice(tallies), marks=marks))

        async with anyio.create_task_group() as group:
            for seed in range(4):
                group.start_soon(publish, (here, there)[seed % 2], seed)
        await all_is_done(admin)
        wanted = {
            tally: [event.stream_version for event in await here.events.load(_stream(tally)) if event.name == "Added"]
            for tally in tallies
        }
    assert {tally: desk.of(tally) for tally in tallies} == wanted
    assert desk.started == desk.seen
    turns = sum(one[0] != next_one[0] for one, next_one in zip(desk.seen, desk.seen[1:], strict=False))
    assert turns > len(tallies), "they take turns: no aggregate waits for another's line to end"


def _stream(tally: TallyId) -> StreamId:
    return StreamId("Tally", tally)


async def test_order_is_kept_while_an_event_is_tried_again(
    dsn: str, admin: Connection, desk: Desk, tally: TallyId
) -> None:
    """The next comes when it has succeeded, not before."""
    desk.failures[tally, 1] = [ZeroDivisionError(), ZeroDivisionError()]
    async with flow_of(desk).open(dsn) as app, app.worker():
        await app.commands.publish(Add(aggregate_id=tally, marks="+++"))
        await all_is_done(admin)
    assert [number for _, number in desk.started] == [1, 1, 1, 2, 3]
    assert desk.of(tally) == [1, 2, 3]


ONE_TRANSACTION = """
SELECT DISTINCT xmin::text FROM (
    SELECT xmin FROM own_row UNION ALL SELECT xmin FROM eventflow.job WHERE name = 'FollowUp'
    UNION ALL SELECT xmin FROM eventflow.event_line WHERE stream_version = 2
    UNION ALL SELECT xmin FROM eventflow.job_history WHERE id = $1
) AS written
"""


@pytest.mark.parametrize("grows", [False, True])
async def test_row_and_follow_up_and_step_are_one_transaction(
    grows: bool, dsn: str, *, admin: Connection, desk: Desk, tally: TallyId
) -> None:
    """Also where the stream has grown by the time of the commit, so that it looks again; failed attempts leave none."""
    await admin.execute("CREATE TABLE own_row (number integer); GRANT ALL ON own_row TO PUBLIC")
    go_on, stop = desk.hold(tally, 1), desk.hold(tally, 2)

    async def also(context: SubscriberContext) -> None:
        connection = await context.transaction()
        await connection.execute("INSERT INTO own_row VALUES ($1)", context.stream_version)
        context.schedule(FollowUp(), delay=LATER)

    desk.also = also
    desk.failures[tally, 1] = [ZeroDivisionError()]
    async with flow_of(desk).open(dsn) as app, app.worker():
        await app.commands.publish(Add(aggregate_id=tally, marks="+" if grows else "++"))
        job_id = await job_of(dsn, tally, 1)
        await until(lambda: len(desk.started) == 2)
        if grows:
            await app.commands.publish(Add(aggregate_id=tally))
        go_on.set()
        await desk.until_started(tally, 2)
        await ended(app, job_id)
        [_] = await admin.fetch(ONE_TRANSACTION, UUID(job_id.uuid))
        stop.set()
        await all_is_done(admin)
        assert [row["number"] for row in await admin.fetch("SELECT number FROM own_row ORDER BY 1")] == [1, 2]
        assert await admin.fetchval("SELECT count(*) FROM eventflow.job WHERE name = 'FollowUp'") == 2
    assert desk.of(tally) == [1, 2]


@pytest.mark.parametrize("marks", ["+", "."])
async def test_subscriber_may_append_to_the_same_aggregate_in_its_own_transaction(
    marks: str, dsn: str, *, admin: Connection, desk: Desk, tally: TallyId
) -> None:
    """The event is there for who looks for the next before the commit, and for nobody else."""

    async def also(context: SubscriberContext) -> None:
        if context.stream_version == 1:
            app = await context.services.aget(App)
            await app.commands.publish(Add(aggregate_id=tally, marks=marks), connection=await context.transaction())

    desk.also = also
    async with flow_of(desk).open(dsn) as app:
        await app.commands.publish(Add(aggregate_id=tally))
        with anyio.fail_after(10):
            async with app.worker(WorkerSettings(grace_period=0)):
                await all_is_done(admin)
    assert desk.of(tally) == ([1, 2] if marks == "+" else [1])
