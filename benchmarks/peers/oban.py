"""Oban (Python)."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import ClassVar

from oban import Job, Oban, worker
from oban.schema import install

from benchmarks.contestants.interface import Started

CONNECTIONS = 20
LIMIT = 1000


@worker(queue="default")
class Tick:
    """Tells its number."""

    started: ClassVar[Started]

    async def process(self, job: Job) -> None:
        type(self).started(job.args["number"])


class _Producer:
    def __init__(self, oban: Oban) -> None:
        self._oban = oban

    async def enqueue(self, number: int) -> None:
        await self._oban.enqueue(Tick.new({"number": number}))

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        await self._oban.enqueue_many(Tick.new({"number": number}) for number in numbers)

    async def enqueue_at(self, jobs: Sequence[tuple[int, datetime]]) -> None:
        await self._oban.enqueue_many(Tick.new({"number": number}, scheduled_at=due) for number, due in jobs)


class Way:
    """One queue of 1,000 jobs at once; jobs that have completed are kept for a day."""

    async def set_up(self, address: str) -> None:
        pool = await Oban.create_pool(address)
        await install(pool)
        await pool.close()

    @asynccontextmanager
    async def producer(self, address: str) -> AsyncGenerator[_Producer]:
        pool = await Oban.create_pool(address, min_size=CONNECTIONS, max_size=CONNECTIONS)
        async with Oban(pool=pool) as oban:
            yield _Producer(oban)
        await pool.close()

    @asynccontextmanager
    async def worker(self, address: str, started: Started) -> AsyncGenerator[None]:
        Tick.started = staticmethod(started)
        pool = await Oban.create_pool(address)
        async with Oban(pool=pool, queues={"default": LIMIT}):
            yield
        await pool.close()
