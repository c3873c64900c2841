"""Procrastinate on psycopg."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

from procrastinate import App, PsycopgConnector
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from benchmarks.contestants.interface import Started
from benchmarks.peers.concurrency import each, running

CONCURRENCY = 20


async def _commit_each_statement(connection: AsyncConnection) -> None:
    await connection.set_autocommit(True)


@asynccontextmanager
async def _opened(app: App, address: str, connections: int) -> AsyncGenerator[None]:
    pool = AsyncConnectionPool(
        address, min_size=connections, max_size=connections, open=False, configure=_commit_each_statement
    )
    async with pool, app.open_async(pool):
        await pool.wait()
        yield


class _Producer:
    def __init__(self, app: App) -> None:
        self._app = app
        self._tick = app.configure_task("tick")

    async def enqueue(self, number: int) -> None:
        await self._tick.defer_async(number=number)

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        await self._tick.batch_defer_async(*({"number": number} for number in numbers))

    async def enqueue_at(self, jobs: Sequence[tuple[int, datetime]]) -> None:
        together: dict[datetime, list[int]] = {}
        for number, due in jobs:
            together.setdefault(due, []).append(number)

        async def defer(instant: tuple[datetime, list[int]]) -> None:
            due, numbers = instant
            tick = self._app.configure_task("tick", schedule_at=due)
            await tick.batch_defer_async(*({"number": number} for number in numbers))

        await each(together.items(), defer)


class Way:
    """
    Twenty jobs at once; a finished one is deleted.

    The pool is given: one that Procrastinate makes tests each connection before it is used, and wraps each statement
    in a transaction of three round trips, though all that it does is single statements.
    """

    async def set_up(self, address: str) -> None:
        async with App(connector=PsycopgConnector(conninfo=address)).open_async() as app:
            await app.schema_manager.apply_schema_async()

    @asynccontextmanager
    async def producer(self, address: str) -> AsyncGenerator[_Producer]:
        app = App(connector=PsycopgConnector())
        async with _opened(app, address, 20):
            yield _Producer(app)

    @asynccontextmanager
    async def worker(self, address: str, started: Started) -> AsyncGenerator[None]:
        app = App(connector=PsycopgConnector())

        @app.task(name="tick")
        async def tick(number: int) -> None:
            started(number)

        async with (
            _opened(app, address, 12),
            running(app.run_worker_async(concurrency=CONCURRENCY, delete_jobs="always", install_signal_handlers=False)),
        ):
            yield
