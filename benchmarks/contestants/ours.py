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
    def __init__(self, app: App) -> None:
        self._app = app

    async def enqueue(self, number: int) -> None:
        await self._app.jobs.schedule(Tick(number=number))

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        await self._app.jobs.schedule_many([Tick(number=number) for number in numbers])

    async def enqueue_at(self, jobs: Sequence[tuple[int, datetime]]) -> None:
        await asyncio.gather(*(self._app.jobs.schedule(Tick(number=number), at=at) for number, at in jobs))


class Way:
    """Jobs that have succeeded are kept for a day."""

    retention_days = 1

    def _flow(self) -> EventFlow:
        flow = EventFlow("benchmark")
        flow.job(retention_days=self.retention_days)(Tick)
        return flow

    async def set_up(self, address: str) -> None:
        connection: Connection = await asyncpg.connect(address)
        await migrate(connection)
        await connection.close()

    @asynccontextmanager
    async def producer(self, address: str) -> AsyncGenerator[_Producer]:
        async with self._flow().open(address) as app:
            yield _Producer(app)

    @asynccontextmanager
    async def worker(self, address: str, started: Started) -> AsyncGenerator[None]:
        Tick.started = staticmethod(started)
        async with self._flow().open(address) as app, app.worker(WorkerSettings()):
            yield


class NotKept(Way):
    """A job that has succeeded leaves no row."""

    retention_days = 0
