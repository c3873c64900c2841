"""SAQ on Redis."""

from contextlib import AbstractAsyncContextManager

from redis import asyncio as redis
from saq.queue.redis import RedisQueue

from benchmarks.contestants.interface import Producer, Started
from benchmarks.peers.saq import producing, working

CONCURRENCY = 50


class Way:
    """Fifty jobs at once; a finished one is deleted."""

    async def set_up(self, address: str) -> None:
        async with redis.from_url(address) as client:
            await client.flushdb()

    def producer(self, address: str) -> AbstractAsyncContextManager[Producer]:
        return producing(RedisQueue.from_url(address))

    def worker(self, address: str, started: Started) -> AbstractAsyncContextManager[None]:
        return working(RedisQueue.from_url(address), started, concurrency=CONCURRENCY)
