"""arq on Redis."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from arq import create_pool, func
from arq.connections import ArqRedis, RedisSettings
from arq.worker import Worker

from benchmarks.contestants.interface import Started
from benchmarks.peers.concurrency import each, running

CONCURRENCY = 500
POLL_SECONDS = 0.02


class _Producer:
    def __init__(self, redis: ArqRedis) -> None:
        self._redis = redis

    async def enqueue(self, number: int) -> None:
        await self._redis.enqueue_job("tick", number)

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        await each(numbers, self.enqueue)

    async def enqueue_at(self, jobs: Sequence[tuple[int, datetime]]) -> None:
        async def enqueue(job: tuple[int, datetime]) -> None:
            number, due = job
            await self._redis.enqueue_job("tick", number, _defer_until=due)

        await each(jobs, enqueue)


@asynccontextmanager
async def _connected(address: str) -> AsyncGenerator[ArqRedis]:
    redis = await create_pool(RedisSettings.from_dsn(address))
    try:
        yield redis
    finally:
        await redis.aclose(close_connection_pool=True)


class Way:
    """Five hundred jobs at once; no results are kept. It has nothing but polling, so that is fast."""

    async def set_up(self, address: str) -> None:
        async with _connected(address) as redis:
            await redis.flushdb()

    @asynccontextmanager
    async def producer(self, address: str) -> AsyncGenerator[_Producer]:
        async with _connected(address) as redis:
            yield _Producer(redis)

    @asynccontextmanager
    async def worker(self, address: str, started: Started) -> AsyncGenerator[None]:
        async def tick(_: Any, number: int) -> None:
            started(number)

        worker = Worker(
            functions=[func(tick, name="tick")],
            redis_settings=RedisSettings.from_dsn(address),
            handle_signals=False,
            max_jobs=CONCURRENCY,
            poll_delay=POLL_SECONDS,
            keep_result=0,
        )
        async with running(worker.async_run()):
            yield
        await worker.close()
