"""
Applications that write a row of their own and schedule a job, in one transaction after the other.

In turns: for half a second each job is due now, so that its commit wakes workers; then it is due in an hour, which
nobody is told. All else is the same, the statements too. The clock tells whose turn it is, so that many processes take
turns together: with, without, without, with.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg

from benchmarks.contestants.interface import Started
from benchmarks.contestants.ours import Tick, Way
from eventflow import App
from eventflow.ids import new_uuid
from eventflow.postgres import Connection

SLICE_SECONDS = 0.5
WOKEN_SLICES = (True, False, False, True)
NOW, LATER = timedelta(0), timedelta(hours=1)
TABLE = "CREATE TABLE purchase (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, what text NOT NULL)"
PURCHASE = "INSERT INTO purchase (what) VALUES ($1)"
OPEN_WORKER = "INSERT INTO eventflow.worker (id, host, pid, version, concurrency) VALUES ($1, 'listens', 0, '0', 1)"


def slice_at(instant: float) -> int:
    """The number of the slice, of an instant in seconds since the epoch."""
    return int(instant // SLICE_SECONDS)


def is_woken(number: int) -> bool:
    """Whether commits wake workers in this slice."""
    return WOKEN_SLICES[number % len(WOKEN_SLICES)]


class Client(Way):
    """
    One client on a connection of its own.

    A worker of the suite, whose jobs are its commits: their number is 1 if they wake, and else 0.
    """

    clients = 1

    @asynccontextmanager
    async def worker(self, address: str, started: Started) -> AsyncGenerator[None]:
        async with self._flow().open(address, pool_size=self.clients) as app, asyncio.TaskGroup() as group:
            clients = [group.create_task(_buy(app, started)) for _ in range(self.clients)]
            yield
            for client in clients:
                client.cancel()


class Clients16(Client):
    """Sixteen of them in one process."""

    clients = 16


class Clients64(Client):
    """Sixty-four of them in one process."""

    clients = 64


async def _buy(app: App, started: Started) -> None:
    while True:
        woken = is_woken(slice_at(time.time()))
        async with app.transaction() as connection:
            await connection.execute(PURCHASE, "a book")
            await app.jobs.schedule(Tick(number=0), delay=NOW if woken else LATER, connection=connection)
        started(int(woken))


class Listener(Way):
    """
    Listens as a worker does, is counted as one, and claims nothing; its jobs are the notifications that it hears.

    What a worker does with a notification takes processor time from the producers, but is the price of running jobs.
    """

    @asynccontextmanager
    async def worker(self, address: str, started: Started) -> AsyncGenerator[None]:
        connection: Connection = await asyncpg.connect(address)
        await connection.execute(OPEN_WORKER, new_uuid())

        def hear(*_: Any) -> None:
            started(0)

        await connection.add_listener("eventflow", hear)
        yield
