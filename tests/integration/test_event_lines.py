"""Subscribers that take events in order: where they stand, who appends meanwhile, and what ends beside the way."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from random import Random
from uuid import UUID

import anyio
import asyncpg
import pytest

from eventflow import (
    Aggregate,
    App,
    Command,
    CommandContext,
    Event,
    EventFlow,
    Identity,
    Job,
    JobContext,
    JobId,
    JobState,
    OnError,
    RetryPolicy,
    Saga,
    Services,
    StreamId,
    SubscriberContext,
    WorkerSettings,
    applies,
    handles,
)
from eventflow.postgres import Connection
from eventflow.postgres.statements import statement
from tests.support.journal import ended, in_state, query
from tests.support.waiting import eventually, until

PATIENT = RetryPolicy(max_attempts=3, base=timedelta(0))
ONCE = RetryPolicy(max_attempts=1)
LATER = timedelta(hours=1)
SWEEPING = WorkerSettings(tick_interval=0.1)
"""A worker that looks for lines to mend ten times a second."""


class TallyId(Identity):
    """Of a tally."""


class Added(Event):
    """What the subscriber wants."""


class Checked(Event):
    """What it does not want."""


class Tally(Aggregate[TallyId]):
    """Emits what it is told to."""

    @applies
    def _happened(self, event: Added | Checked) -> None: ...


class Add(Command[TallyId]):
    """Emit these: ``+`` is wanted, and ``.`` is not."""

    marks: str = "+"


class FollowUp(Job):
    """Does nothing."""

    async def execute(self, context: JobContext) -> None: ...


Place = tuple[str, int]
"""Aggregate and number of an event."""


class Desk:
    """
    What the subscriber has dealt with, and how it goes about it.

    Attributes:
        started: Its attempts, in order.
        seen: What it has dealt with, in order; of what is tried again, each time.
        held: It waits at the gate with these.
        failures: By event, what its attempts raise, one after the other.
        also: What it does beside.
    """

    def __init__(self) -> None:
        self.started: list[Place] = []
        self.seen: list[Place] = []
        self.held: dict[Place, anyio.Event] = {}
        self.failures: dict[Place, list[Exception]] = {}
        self.also: Callable[[SubscriberContext], Awaitable[None]] | None = None

    async def deal_with(self, context: SubscriberContext) -> None:
        """What the subscriber does with an event."""
        place = (context.aggregate_id, context.stream_version)
        self.started.append(place)
        if self.also is not None:
            await self.also(context)
        if self.failures.get(place):
            raise self.failures[place].pop(0)
        if place in self.held:
            await self.held[place].wait()
        self.seen.append(place)

    def hold(self, tally: TallyId, number: int) -> anyio.Event:
        """Have it wait with an event; returns what it waits for."""
        return self.held.setdefault((tally, number), anyio.Event())

    async def until_started(self, tally: TallyId, number: int) -> None:
        """Wait until it has begun with an event."""
        await until(lambda: (tally, number) in self.started)

    def of(self, tally: TallyId) -> list[int]:
        """The events of one aggregate that it has dealt with, in order."""
        return [number for of, number in self.seen if of == tally]


def without_subscriber(desk: Desk) -> EventFlow:
    """Tallies alone."""

    @asynccontextmanager
    async def lifespan(services: Services) -> AsyncGenerator[None]:
        services.register_value(Desk, desk)
        yield

    flow = EventFlow("tallies", lifespan=lifespan)
    flow.add_jobs(FollowUp)

    @flow.command_handler
    async def add(tally: Tally, command: Add, context: CommandContext) -> None:
        for mark in command.marks:
            tally.emit(Added() if mark == "+" else Checked())

    return flow


def flow_of(desk: Desk, other: Desk | None = None, *, retry: RetryPolicy = PATIENT) -> EventFlow:
    """Tallies and a subscriber that takes their events in order, or two."""
    flow = without_subscriber(desk)

    @flow.subscriber(ordered=True, retry=retry, queue="lines")
    async def note(event: Added, context: SubscriberContext) -> None:
        await desk.deal_with(context)

    if other is not None:

        @flow.subscriber(ordered=True)
        async def compare(event: Added, context: SubscriberContext) -> None:
            await other.deal_with(context)

    return flow


@pytest.fixture
def desk() -> Desk:
    """The subscriber's."""
    return Desk()


@pytest.fixture
def tally() -> TallyId:
    """An aggregate."""
    return TallyId.new()


NOBODY_STANDS = """
SELECT NOT EXISTS (SELECT FROM eventflow.event_line) AND NOT EXISTS (SELECT FROM eventflow.running)
    AND NOT EXISTS (SELECT FROM eventflow.job WHERE name LIKE 'Subscriber:%')
"""
COMMITS_THAT_WAIT = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
    AND starts_with(query, $1)
"""


async def all_is_done(admin: Connection) -> None:
    """Wait until there is neither a line nor a job of a subscriber left."""
    await eventually(lambda: admin.fetchval(NOBODY_STANDS))


async def commits_wait(admin: Connection, number: int = 1) -> None:
    """Wait until so many commits wait for somebody's lock."""

    async def waiting() -> bool:
        await admin.execute("SELECT pg_stat_clear_snapshot()")  # what a transaction has seen of others before
        return bool(await admin.fetchval(COMMITS_THAT_WAIT, statement("commit_changes")[:100]) == number)

    await eventually(waiting)


async def job_of(dsn: str, tally: TallyId, number: int, *, subscriber: str = "note") -> JobId:
    """The job of an event that stands in line."""
    [row] = await query(
        dsn,
        "SELECT job_id FROM eventflow.event_line WHERE aggregate_id = $1 AND stream_version = $2 AND subscriber = $3",
        tally,
        number,
        subscriber,
    )
    return JobId.of(str(row["job_id"]))


# Whoever appends, and whoever leaves, take turns


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


# What ends without going on


class RefusedError(Exception):
    """What a handler raises that is not to be tried again."""


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


# Catching up


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


# Attempts and transactions


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


# Two lines at once: that of the event, and that of what is appended


class MatchId(Identity):
    """Of both players of a match."""


class Pinged(Event):
    """The ball is with the other one, who plays it so many times more."""

    left: int


class Ponged(Event):
    """And back."""

    left: int


class Serve(Command[MatchId]):
    """Play the ball first, so many of them."""

    balls: int = 1
    left: int = 0


class Both(Command[MatchId]):
    """The same for the other player."""

    balls: int = 1
    left: int = 0


class Match:
    """Holds both players before they commit, and says how they do it."""

    def __init__(self, *, in_transaction: bool, is_open: bool = False) -> None:
        self.in_transaction = in_transaction
        self.arrived = 0
        self.gate = anyio.Event()
        if is_open:
            self.gate.set()

    async def stroke(self, context: CommandContext) -> None:
        """One of them plays the ball."""
        if self.in_transaction:
            await context.transaction()
        self.arrived += 1
        await self.gate.wait()


class Ping(Saga[MatchId]):
    """Answers each ball of the other."""

    strokes: int = 0

    @handles(starts=True)
    async def ponged(self, event: Ponged, context: CommandContext) -> None:
        await (await context.services.aget(Match)).stroke(context)
        if event.left:
            self.emit(Pinged(left=event.left - 1))

    @applies
    def _pinged(self, event: Pinged) -> None:
        self.strokes += 1


class Pong(Saga[MatchId]):
    """Too."""

    strokes: int = 0

    @handles(starts=True)
    async def pinged(self, event: Pinged, context: CommandContext) -> None:
        await (await context.services.aget(Match)).stroke(context)
        if event.left:
            self.emit(Ponged(left=event.left - 1))

    @applies
    def _ponged(self, event: Ponged) -> None:
        self.strokes += 1


def match_flow(match: Match) -> EventFlow:
    """Two sagas, each of which follows the other."""

    @asynccontextmanager
    async def lifespan(services: Services) -> AsyncGenerator[None]:
        services.register_value(Match, match)
        yield

    flow = EventFlow("match", lifespan=lifespan)
    flow.saga(Ping)
    flow.saga(Pong)

    @flow.command_handler
    async def serve(player: Ping, command: Serve, context: CommandContext) -> None:
        for _ in range(command.balls):
            player.emit(Pinged(left=command.left))

    @flow.command_handler
    async def serve_too(player: Pong, command: Both, context: CommandContext) -> None:
        for _ in range(command.balls):
            player.emit(Ponged(left=command.left))

    return flow


async def deadlocks(admin: Connection) -> int:
    """How many the database has seen; those of sessions that have ended are in it for sure."""

    async def alone() -> bool:
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        return bool(await admin.fetchval(f"{others} AND backend_type = 'client backend'") == 0)

    await eventually(alone)
    found: int = await admin.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    return found


BLOCKED_BY = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pg_blocking_pids(pid) && ARRAY[$1::integer]
"""
LOCK = "SELECT FROM eventflow.event_line WHERE subscriber = $1 FOR UPDATE"


async def test_commits_that_want_the_same_two_lines_take_them_in_one_order(
    dsn: str, admin_dsn: str, admin: Connection
) -> None:
    """Each stands in the line that the other appends to; both have to wait, once for the one and once for the other."""
    before, match, players = await deadlocks(admin), Match(in_transaction=True), MatchId.new()
    second = await asyncpg.connect(admin_dsn)
    async with match_flow(match).open(dsn) as app:
        await app.commands.publish(Serve(aggregate_id=players, left=1))
        await app.commands.publish(Both(aggregate_id=players, left=1))
        async with app.worker():
            await until(lambda: match.arrived == 2)
            async with second.transaction():
                await second.execute(LOCK, "Pong")
                async with admin.transaction():
                    await admin.execute(LOCK, "Ping")
                    match.gate.set()
                    await commits_wait(admin, 2)

                async def one_has_the_first() -> bool:
                    waiting = await admin.fetchval(BLOCKED_BY, second.get_server_pid())
                    return bool(waiting) and not await admin.fetchval(BLOCKED_BY, admin.get_server_pid())

                await eventually(one_has_the_first)
                await commits_wait(admin, 2)
            await all_is_done(admin)
    await second.close()
    assert await deadlocks(admin) == before


async def test_many_such_commits_that_share_transactions_never_wait_in_a_circle(dsn: str, admin: Connection) -> None:
    """Two processes, a dozen matches, several balls at a time."""
    before, match, matches = await deadlocks(admin), Match(in_transaction=False, is_open=True), range(12)
    flow = match_flow(match)
    async with flow.open(dsn) as here, flow.open(dsn) as there, here.worker(), there.worker():
        players = [MatchId.new() for _ in matches]
        async with anyio.create_task_group() as group:
            for number, each in enumerate(players):
                group.start_soon(here.commands.publish, Serve(aggregate_id=each, balls=3, left=number % 4))
                group.start_soon(there.commands.publish, Both(aggregate_id=each, balls=3, left=3 - number % 4))
        await all_is_done(admin)
        strokes: list[int] = []
        for each in players:
            strokes.append((await here.aggregates.load(Ping, each)).strokes)
            strokes.append((await here.aggregates.load(Pong, each)).strokes)
    # Three balls of each, and what is left of both sides, in turns
    assert strokes == [n for number in matches for n in _strokes(number % 4, 3 - number % 4)]
    assert await deadlocks(admin) == before


def _strokes(ping: int, pong: int) -> tuple[int, int]:
    """How often each plays: its own balls come back every second time, and so do the other's."""
    return 3 * (1 + ping // 2 + (pong + 1) // 2), 3 * (1 + pong // 2 + (ping + 1) // 2)
