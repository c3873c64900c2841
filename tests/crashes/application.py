"""The application whose processes the sweep kills; what its handlers do are rows."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import anyio.from_thread
import asyncpg

from eventflow import EventFlow, Job, JobContext, RetryPolicy, Services
from eventflow.clock import SystemClock
from eventflow.failpoints import failpoint
from tests.crashes.points import MID_HANDLER

CREATE_TABLES = """
CREATE TABLE start (
    job_id uuid NOT NULL, pid integer NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE written (pid integer NOT NULL);
GRANT SELECT, INSERT ON start, written TO PUBLIC;
"""
FOR_EVER = 3600.0

clock = SystemClock()


class Starts:
    """Writes down which job started, when by the database's clock, and in which process."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    async def note(self, context: JobContext) -> int:
        """A handler begins; returns how often this job has by now. Here a process can be made to die."""
        job_id = context.job_id.uuid
        await self._pool.execute("INSERT INTO start (job_id, pid) VALUES ($1, $2)", job_id, os.getpid())
        times: int = await self._pool.fetchval("SELECT count(*) FROM start WHERE job_id = $1", job_id)
        failpoint(MID_HANDLER)
        return times


async def note(context: JobContext) -> int:
    """:meth:`Starts.note`."""
    return await (await context.services.aget(Starts)).note(context)


@asynccontextmanager
async def lifespan(services: Services) -> AsyncGenerator[None]:
    async with asyncpg.create_pool(os.environ.get("EVENTFLOW_DSN"), min_size=0, max_size=3) as pool:
        services.register_value(Starts, Starts(pool))
        yield


flow = EventFlow("crashes", lifespan=lifespan)
quickly = RetryPolicy(max_attempts=3, base=timedelta(milliseconds=20))


@flow.job
class Plain(Job):
    async def execute(self, context: JobContext) -> None:
        await note(context)


@flow.job
class InThread(Job):
    """The same in a thread."""

    def execute(self, context: JobContext) -> None:
        anyio.from_thread.run(note, context)


@flow.job(retry=quickly)
class Parent(Job):
    """Has a child if, and only if, it succeeds. Runs until *until*."""

    until: datetime | None = None

    async def execute(self, context: JobContext) -> None:
        await note(context)
        context.schedule(Child(parent=context.job_id.uuid))
        if self.until is not None:
            await clock.sleep(max(0.0, self.until.timestamp() - datetime.now(self.until.tzinfo).timestamp()))


@flow.job
class Child(Job):
    parent: str

    async def execute(self, context: JobContext) -> None:
        await note(context)


@flow.job(retry=quickly)
class Flaky(Job):
    """Fails in its first attempt."""

    async def execute(self, context: JobContext) -> None:
        await note(context)
        if context.attempt == 1:
            raise RuntimeError("the first attempt fails")


@flow.job(retry=RetryPolicy(max_attempts=1))
class Doomed(Job):
    """Fails for good."""

    async def execute(self, context: JobContext) -> None:
        await note(context)
        raise RuntimeError("it always fails")


@flow.job(timeout=timedelta(seconds=1), retry=quickly)
class TooLong(Job):
    """Takes too long in its first attempt."""

    async def execute(self, context: JobContext) -> None:
        await note(context)
        if context.attempt == 1:
            await clock.sleep(FOR_EVER)


@flow.job
class Endless(Job):
    """Has to be cancelled."""

    async def execute(self, context: JobContext) -> None:
        await note(context)
        await clock.sleep(FOR_EVER)


@flow.job
class LongAtFirst(Job):
    """Does not end by itself when it starts for the first time."""

    async def execute(self, context: JobContext) -> None:
        if await note(context) == 1:
            await clock.sleep(FOR_EVER)


@flow.job
class Brief(Job):
    """Takes a moment."""

    async def execute(self, context: JobContext) -> None:
        await note(context)
        await clock.sleep(0.2)
