"""Chancy."""

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import ClassVar

from chancy import Chancy, Job, Queue, Worker
from chancy.plugins.leadership import Leadership
from chancy.plugins.recovery import Recovery

from benchmarks.contestants.interface import Started

CONNECTIONS = 20
QUEUE = Queue("default", concurrency=500, executor=Chancy.Executor.Async, polling_interval=1, eager_polling=True)
FLUSH_SECONDS = 0.1
"""By its default, a second, the end of a drain would be waited for."""


class _Handler:
    started: ClassVar[Started]


async def tick(number: int) -> None:
    """Tells its number."""
    _Handler.started(number)


def _tick(number: int) -> Job:
    return Job.from_func(tick, kwargs={"number": number})


def _chancy(address: str, connections: int = 10) -> Chancy:
    """With what rescues the jobs of a dead worker, and no other plugins: each costs time for each job."""
    log = logging.getLogger("chancy")
    log.setLevel(logging.WARNING)
    return Chancy(
        address,
        plugins=[Leadership(), Recovery()],
        no_default_plugins=True,
        min_connection_pool_size=connections,
        max_connection_pool_size=connections,
        log=log,
    )


class _Producer:
    def __init__(self, chancy: Chancy) -> None:
        self._chancy = chancy

    async def enqueue(self, number: int) -> None:
        await self._chancy.push(_tick(number))

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        await self._push([_tick(number) for number in numbers])

    async def enqueue_at(self, jobs: Sequence[tuple[int, datetime]]) -> None:
        await self._push([_tick(number).with_scheduled_at(due) for number, due in jobs])

    async def _push(self, jobs: list[Job]) -> None:
        async for _ in self._chancy.push_many(jobs):
            pass


class Way:
    """One queue of 500 jobs at once, in the event loop."""

    async def set_up(self, address: str) -> None:
        async with _chancy(address) as chancy:
            await chancy.migrate()
            await chancy.declare(QUEUE)

    @asynccontextmanager
    async def producer(self, address: str) -> AsyncGenerator[_Producer]:
        async with _chancy(address, CONNECTIONS) as chancy:
            await chancy.pool.wait()
            yield _Producer(chancy)

    @asynccontextmanager
    async def worker(self, address: str, started: Started) -> AsyncGenerator[None]:
        _Handler.started = staticmethod(started)
        async with _chancy(address) as chancy:
            worker = Worker(chancy, register_signal_handlers=False, shutdown_timeout=5)
            worker.send_outgoing_interval = FLUSH_SECONDS
            async with worker:
                yield
