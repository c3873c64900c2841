"""Eventflow, as it comes."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import ClassVar

import asyncpg

from benchmarks.contestants.interface import Started
from eventflow import App, EventFlow, Job, JobContext, WorkerSettings
from eventflow.postgres import Connection, migrate


class Tick(Job):
    """Tells its number."""

    started: ClassVar[Started]
    number: int

    async def execute(self, context: JobContext) -> None:
        type(self).started(self.number)


class _Producer:
    def __init__(self, app: App, job: type[Tick]) -> None:
        self._app = app
        self._job = job

    async def enqueue(self, number: int) -> None:
        await self._app.jobs.schedule(self._job(number=number))

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        await self._app.jobs.schedule_many([self._job(number=number) for number in numbers])

    async def enqueue_at(self, jobs: Sequence[tuple[int, datetime]]) -> None:
        await asyncio.gather(*(self._app.jobs.schedule(self._job(number=number), at=at) for number, at in jobs))


class Way:
    """Jobs that have succeeded are kept for a day."""

    job: type[Tick] = Tick
    retention_days = 1
    settings = WorkerSettings()

    def _flow(self) -> EventFlow:
        flow = EventFlow("benchmark")
        flow.job(retention_days=self.retention_days)(self.job)
        return flow

    async def set_up(self, address: str) -> None:
        connection: Connection = await asyncpg.connect(address)
        await migrate(connection)
        await connection.close()

    @asynccontextmanager
    async def producer(self, address: str) -> AsyncGenerator[_Producer]:
        async with self._flow().open(address) as app:
            yield _Producer(app, self.job)

    @asynccontextmanager
    async def worker(self, address: str, started: Started) -> AsyncGenerator[None]:
        Tick.started = staticmethod(started)
        async with self._flow().open(address) as app, app.worker(self.settings):
            yield


class NotKept(Way):
    """A job that has succeeded leaves no row."""

    retention_days = 0


class Batches100(Way):
    """Claims and ends at most a hundred jobs at a time."""

    settings = WorkerSettings(max_prefetch=0, settle_batch=100)


class Elsewhere(Way):
    """Serves a queue that has no jobs."""

    queue = "elsewhere"
    settings = WorkerSettings(queues=(queue,))

    @asynccontextmanager
    async def worker(self, address: str, started: Started) -> AsyncGenerator[None]:
        connection: Connection = await asyncpg.connect(address)
        await connection.fetchval("SELECT eventflow.ensure_queue($1)", self.queue)
        await connection.close()
        async with super().worker(address, started):
            yield
