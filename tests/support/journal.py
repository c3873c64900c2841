"""What handlers did, told by themselves, and the flows and jobs that tests share."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from datetime import datetime

import anyio
import asyncpg
import msgspec

from eventflow import App, EventFlow, Job, JobContext, JobId, JobRecord, JobState, Services
from tests.support.waiting import eventually, until


class Run(msgspec.Struct, frozen=True):
    """One start of a handler."""

    job_id: JobId
    attempt: int
    label: str
    due_at: datetime
    database_time: datetime | None = None


class Journal:
    """
    Lists the runs, and holds handlers that wait at the gate.

    Attributes:
        runs: Every start of a handler, in order.
        finished: Labels of the handlers that came to their end.
        cancelled: Labels of those that were cancelled.
        gate: Handlers of :class:`Hold` wait for it.
    """

    def __init__(self, clock_dsn: str | None = None) -> None:
        self.runs: list[Run] = []
        self.finished: list[str] = []
        self.cancelled: list[str] = []
        self.gate = anyio.Event()
        self._clock_dsn = clock_dsn
        self._clock: asyncpg.Pool[asyncpg.Record] | None = None

    @asynccontextmanager
    async def lifespan(self, services: Services) -> AsyncGenerator[None]:
        """Offers itself to handlers."""
        services.register_value(Journal, self)
        if self._clock_dsn is None:
            yield
            return
        async with asyncpg.create_pool(self._clock_dsn, min_size=4, max_size=4) as self._clock:
            yield

    async def note(self, context: JobContext, label: str = "") -> None:
        """A handler starts; with a *clock_dsn*, the database's clock is read there and then."""
        now = None if self._clock is None else await self._clock.fetchval("SELECT clock_timestamp()")
        self.runs.append(Run(context.job_id, context.attempt, label, context.due_at, now))

    def ids(self) -> list[JobId]:
        """The jobs that ran, in order, as often as they did."""
        return [run.job_id for run in self.runs]

    def labels(self) -> list[str]:
        """Their labels."""
        return [run.label for run in self.runs]

    async def until_started(self, *labels: str) -> None:
        """Wait until handlers with these labels have started."""
        await until(lambda: set(labels) <= set(self.labels()))

    async def until_runs(self, count: int, *, within: float = 30.0) -> None:
        """Wait until so many handlers have started."""
        await until(lambda: len(self.runs) >= count, within=within)


class Note(Job):
    """Notes that it ran."""

    label: str = ""

    async def execute(self, context: JobContext) -> None:
        await (await context.services.aget(Journal)).note(context, self.label)


class Hold(Job):
    """Runs until the gate is open."""

    label: str = ""

    async def execute(self, context: JobContext) -> None:
        journal = await context.services.aget(Journal)
        await journal.note(context, self.label)
        try:
            await journal.gate.wait()
        except anyio.get_cancelled_exc_class():
            journal.cancelled.append(self.label)
            raise
        journal.finished.append(self.label)


def flow_of(journal: Journal, *jobs: type[Job]) -> EventFlow:
    """A flow with these jobs besides :class:`Note` and :class:`Hold`."""
    flow = EventFlow("test", lifespan=journal.lifespan)
    flow.add_jobs(Note, Hold, *jobs)
    return flow


ENDED = {JobState.SUCCEEDED, JobState.IGNORED, JobState.CANCELLED, JobState.DEAD}


async def ended(app: App, job_id: JobId, *, within: float = 15.0) -> JobRecord:
    """Wait until a job has ended, and return what is kept of it."""

    async def look() -> JobRecord | None:
        record = await app.jobs.get(job_id)
        return record if record is not None and record.state in ENDED else None

    record = await eventually(look, within=within)
    assert record is not None
    return record


async def in_state(app: App, job_id: JobId, state: JobState) -> JobRecord:
    """Wait until a job is in this state."""

    async def look() -> JobRecord | None:
        record = await app.jobs.get(job_id)
        return record if record is not None and record.state is state else None

    record = await eventually(look)
    assert record is not None
    return record


async def query(dsn: str, sql: str, *args: object) -> list[asyncpg.Record]:
    """Run one statement on a connection of its own."""
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(sql, *args)
    finally:
        await connection.close()


async def count_jobs(dsn: str) -> int:
    """How many jobs there are, whatever their state."""
    [row] = await query(
        dsn,
        "SELECT (SELECT count(*) FROM eventflow.job) + (SELECT count(*) FROM eventflow.running)"
        " + (SELECT count(*) FROM eventflow.job_history) + (SELECT count(*) FROM eventflow.dead_letter) AS jobs",
    )
    jobs: int = row["jobs"]
    return jobs


def duplicates(ids: Iterable[JobId]) -> list[JobId]:
    """The ids that occur more than once."""
    seen, twice = set[JobId](), list[JobId]()
    for job_id in ids:
        if job_id in seen:
            twice.append(job_id)
        seen.add(job_id)
    return twice
