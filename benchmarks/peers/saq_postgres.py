"""SAQ on Postgres."""

from contextlib import AbstractAsyncContextManager

from psycopg_pool import AsyncConnectionPool
from saq.queue.postgres import PostgresQueue

from benchmarks.contestants.interface import Producer, Started
from benchmarks.peers.saq import producing, working

CONCURRENCY = 100


def _queue(address: str, *, least: int, most: int) -> PostgresQueue:
    pool = AsyncConnectionPool(address, min_size=least, max_size=most, open=False)
    return PostgresQueue(pool, min_size=least, max_size=most, manage_pool_lifecycle=True)


class Way:
    """
    A hundred jobs at once on a pool of up to forty; a finished one is deleted.

    The pool is given: one that SAQ makes tests each connection before it is used.
    """

    async def set_up(self, address: str) -> None:
        async with producing(_queue(address, least=1, most=4)):
            pass

    def producer(self, address: str) -> AbstractAsyncContextManager[Producer]:
        return producing(_queue(address, least=20, most=20))

    def worker(self, address: str, started: Started) -> AbstractAsyncContextManager[None]:
        return working(_queue(address, least=4, most=40), started, concurrency=CONCURRENCY)
