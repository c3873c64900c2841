"""PgQueuer on asyncpg."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import asyncpg
from pgqueuer import Job, Queries, QueueManager

from benchmarks.contestants.interface import Started
from benchmarks.peers.concurrency import running

BATCH = 1000


class _Producer:
    def __init__(self, queries: Queries) -> None:
        self._queries = queries

    async def enqueue(self, number: int) -> None:
        await self._queries.enqueue("tick", b"%d" % number)

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        count = len(numbers)
        await self._queries.enqueue(["tick"] * count, [b"%d" % number for number in numbers], [0] * count)

    async def enqueue_at(self, jobs: Sequence[tuple[int, datetime]]) -> None:
        count, now = len(jobs), datetime.now(UTC)
        delays: list[timedelta | None] = [due - now for _, due in jobs]
        await self._queries.enqueue(["tick"] * count, [b"%d" % number for number, _ in jobs], [0] * count, delays)


class Way:
    """
    All tables logged; batches of a thousand; without its scheduler of recurring jobs, which asks every second.

    Producers share one connection: each insert notifies, so that commits go one by one, and a pool only adds the
    statements that reset its connections.
    """

    async def set_up(self, address: str) -> None:
        connection = await asyncpg.connect(address)
        await Queries.from_asyncpg_connection(connection).install()
        await connection.close()

    @asynccontextmanager
    async def producer(self, address: str) -> AsyncGenerator[_Producer]:
        connection = await asyncpg.connect(address)
        yield _Producer(Queries.from_asyncpg_connection(connection))
        await connection.close()

    @asynccontextmanager
    async def worker(self, address: str, started: Started) -> AsyncGenerator[None]:
        async with asyncpg.create_pool(address, min_size=4, max_size=8) as pool:
            manager = QueueManager(Queries.from_asyncpg_pool(pool))

            @manager.entrypoint("tick")
            async def tick(job: Job) -> None:
                started(int(job.payload))

            async with running(manager.run(batch_size=BATCH)):
                yield
