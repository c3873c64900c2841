"""Where handlers book what they have done: another database server, which nothing happens to."""

import os
from collections import Counter
from typing import Self

import asyncpg

CREATE = "CREATE TABLE IF NOT EXISTS booked (run text NOT NULL, number integer NOT NULL, process text NOT NULL)"
BOOK = "INSERT INTO booked VALUES ($1, $2, $3)"
READ = "SELECT number, count(*) AS times FROM booked WHERE run = $1 GROUP BY number"
ROOMY = {"max_connections": "500"}
"""Its server's settings."""
DSN, RUN = "EVENTFLOW_RIG_LEDGER", "EVENTFLOW_RIG_RUN"
"""What the rig tells its processes in their environment."""


class Ledger:
    """
    One row for each handler that came to its end; each is there before its handler goes on.

    Args:
        dsn: Of the other server.
        run: Tells runs apart that share it.
    """

    def __init__(self, dsn: str, run: str) -> None:
        self.dsn = dsn
        self.run = run
        self._pool = asyncpg.create_pool(dsn, min_size=0, max_size=4)

    @classmethod
    def of_this_process(cls) -> Self:
        """The one that the rig has named."""
        return cls(os.environ[DSN], os.environ[RUN])

    async def __aenter__(self) -> Self:
        await self._pool
        return self

    async def __aexit__(self, *_: object) -> None:
        self._pool.terminate()

    async def create(self) -> None:
        """Make its table, unless it is there."""
        await self._pool.execute(CREATE)

    async def book(self, number: int, process: str) -> None:
        """A job has come to its end."""
        await self._pool.execute(BOOK, self.run, number, process)

    async def read(self) -> Counter[int]:
        """How often each job has."""
        return Counter({row["number"]: row["times"] for row in await self._pool.fetch(READ, self.run)})
