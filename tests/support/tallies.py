"""Tallies, whose subscriber takes their events in order, and what shows where it stands."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import anyio

from eventflow import (
    Aggregate,
    Command,
    CommandContext,
    Event,
    EventFlow,
    Identity,
    Job,
    JobContext,
    JobId,
    RetryPolicy,
    Services,
    SubscriberContext,
    WorkerSettings,
    applies,
)
from eventflow.postgres import Connection
from eventflow.postgres.statements import statement
from tests.support.journal import query
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


class RefusedError(Exception):
    """What a handler raises that is not to be tried again."""


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
