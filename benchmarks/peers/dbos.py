"""DBOS."""

import asyncio
import os
from collections.abc import AsyncGenerator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import ClassVar

import sqlalchemy
from dbos import DBOS, DBOSClient, DBOSConfig, EnqueueOptions

from benchmarks.contestants.interface import Started

CONNECTIONS = 20
BATCH = 1000
CONCURRENCY = 200
POLL_SECONDS = 0.05
TICK = EnqueueOptions(workflow_name="tick", queue_name="ticks")


class _Handler:
    started: ClassVar[Started]


@DBOS.workflow(name="tick")
async def tick(number: int) -> None:
    """Tells its number."""
    _Handler.started(number)


def _launch(address: str) -> None:
    DBOS(
        config=DBOSConfig(
            name="benchmark",
            system_database_url=address,
            sys_db_pool_size=CONNECTIONS,
            application_version="1",
            executor_id=str(os.getpid()),  # a process that starts recovers what its id was running
            log_level="ERROR",
        )
    )
    DBOS.launch()


class _Producer:
    def __init__(self, client: DBOSClient, engine: sqlalchemy.Engine) -> None:
        self._client = client
        self._engine = engine

    async def enqueue(self, number: int) -> None:
        await self._client.enqueue_async(TICK, number)

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), BATCH):
            await asyncio.to_thread(self._transaction, ((TICK, number) for number in numbers[start : start + BATCH]))

    async def enqueue_at(self, jobs: Sequence[tuple[int, datetime]]) -> None:
        for start in range(0, len(jobs), BATCH):
            batch = jobs[start : start + BATCH]
            await asyncio.to_thread(self._transaction, ((_delayed(due), number) for number, due in batch))

    def _transaction(self, workflows: Iterable[tuple[EnqueueOptions, int]]) -> None:
        with self._engine.begin() as connection:
            for options, number in workflows:
                self._client.enqueue_in_transaction(connection, options, number)


def _delayed(due: datetime) -> EnqueueOptions:
    """To be made just before it is used: a delay counts from then."""
    return EnqueueOptions(**TICK, delay_seconds=max(0.0, (due - datetime.now(UTC)).total_seconds()))


class Way:
    """One queue of 200 workflows at once in a process."""

    async def set_up(self, address: str) -> None:
        _launch(address)
        await DBOS.register_queue_async("ticks", worker_concurrency=CONCURRENCY, polling_interval_sec=POLL_SECONDS)
        await asyncio.to_thread(DBOS.destroy)

    @asynccontextmanager
    async def producer(self, address: str) -> AsyncGenerator[_Producer]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(CONNECTIONS))
        engine = sqlalchemy.create_engine(
            sqlalchemy.make_url(address).set(drivername="postgresql+psycopg"),
            pool_size=CONNECTIONS,
        )
        client = DBOSClient(system_database_engine=engine, application_name="benchmark")
        for connection in [engine.connect() for _ in range(CONNECTIONS)]:
            connection.close()
        yield _Producer(client, engine)
        client.destroy()
        engine.dispose()

    @asynccontextmanager
    async def worker(self, address: str, started: Started) -> AsyncGenerator[None]:
        _Handler.started = staticmethod(started)
        _launch(address)
        yield
        await asyncio.to_thread(DBOS.destroy)
