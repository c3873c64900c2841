"""One process's share of one database: its connections, and what works over them."""

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import anyio
import asyncpg

from eventflow.clock import Clock
from eventflow.jobs import JobEncoder
from eventflow.postgres.catch_ups import PostgresCatchUps
from eventflow.postgres.commits import PostgresCommits
from eventflow.postgres.connection import ABANDONED_IN_HANDLER, CONNECT_SECONDS, Connector, Lane, LaneStack, connector
from eventflow.postgres.event_store import PostgresEventStore
from eventflow.postgres.job_store import PostgresJobStore
from eventflow.postgres.notifier import Notifier
from eventflow.postgres.pooler import Dialer
from eventflow.postgres.presence import PostgresPresence
from eventflow.postgres.scheduler import PostgresJobScheduler
from eventflow.postgres.statements import DEFAULT_SCHEMA, check_schema
from eventflow.postgres.stories import Stories
from eventflow.postgres.transactions import Pool, Transactions
from eventflow.postgres.wakes import Wakes
from eventflow.supervision import Supervisor, background_tasks

DEFAULT_POOL_SIZE = 4
LOADING_LANES = 2
"""Connections over which commands load their aggregates."""
COMMITTING_LANES = 4
"""Connections over which commands commit; so many share an fsync."""
CLOSE_SECONDS = 3.0


class PostgresDatabase:
    """
    What one process needs of one database.

    A process that schedules has up to 3 connections (inserting, looking, notifying) and the pool's; one that publishes
    commands up to 6 more (2 for loading, 4 for committing); a worker 5 more (claiming, ending claims, watching,
    beating, listening). Each is opened when first needed.

    Attributes:
        store: The job store.
        events: The event store.
        commits: Writes what commands and jobs change.
        catch_ups: Remembers how far subscribers have been caught up.
        stories: Finds what followed from what.
    """

    def __init__(
        self, pool: Pool, connect: Connector, listen: Connector, *, schema: str, clock: Clock, rng: Random
    ) -> None:
        self._pool = pool
        self._connect = connect
        self._listen = listen
        self._schema = schema
        self._clock = clock
        self._rng = rng
        self._notifying = Lane(connect, schema)
        self._notifier = Notifier(self._notifying, schema, clock)
        self._wakes = Wakes(self._notifier)
        self.store = PostgresJobStore(connect, schema, wakes=self._wakes)
        self._transactions = Transactions(pool, schema, committed=self._wakes.committed)
        self._lanes = LaneStack(connect, schema)
        loading, committing = self._lanes.share(LOADING_LANES), self._lanes.share(COMMITTING_LANES)
        reading_all = self._lanes.share(1)
        self.commits = PostgresCommits(
            committing,
            self.store.queues,
            schema,
            transactions=self._transactions,
            committed=self._wakes.committed,
        )
        self.events = PostgresEventStore(loading, reading_all, self.commits, schema)
        self.catch_ups = PostgresCatchUps(committing, self.store.queues, schema, committed=self._wakes.committed)
        self.stories = Stories(reading_all, schema)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        dsn: str,
        *,
        schema: str = DEFAULT_SCHEMA,
        listen_dsn: str | None = None,
        pool_size: int = DEFAULT_POOL_SIZE,
        clock: Clock,
        rng: Random,
        **options: Any,
    ) -> AsyncGenerator["PostgresDatabase"]:
        """
        Connect, and check that tables and code fit.

        Args:
            dsn: A libpq address.
            schema: Where the tables are.
            listen_dsn: For LISTEN, if *dsn* leads through a pooler in transaction mode.
            pool_size: Most connections that ``transaction()`` uses at once.
            options: Further arguments of ``asyncpg.connect``.

        Raises:
            DatabaseUnavailableError: the database cannot be reached.
            SchemaVersionError: tables and code do not fit.
        """
        check_schema(schema)
        pool = asyncpg.create_pool(
            dsn,
            connect=Dialer("transactions", set_up=ABANDONED_IN_HANDLER),
            min_size=0,
            max_size=pool_size,
            server_settings={"application_name": f"eventflow transactions {os.getpid()}"},
            timeout=CONNECT_SECONDS,
            **options,
        )
        connect = connector(dsn, name="jobs", **options)
        listen = connector(listen_dsn or dsn, name="listen", **options)
        database = cls(pool, connect, listen, schema=schema, clock=clock, rng=rng)
        try:
            async with background_tasks() as group:
                await pool  # connects to nothing yet; one that was not opened could not be closed
                await database.store.check_version()
                group.start_soon(Supervisor(clock, rng).repeat, "notify", database._notifier.notify_step)
                yield database
                group.cancel_scope.cancel()
        finally:
            try:
                with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                    await database._close()
            finally:
                database._terminate()

    def scheduler(self, encoder: JobEncoder) -> PostgresJobScheduler:
        """The scheduler for jobs and commands that *encoder* knows."""
        return PostgresJobScheduler(self.store, encoder, self._transactions)

    def presence(self, heartbeat_interval: float) -> PostgresPresence:
        """What keeps a worker of this process alive in the eyes of others."""
        return PostgresPresence(
            self._connect,
            self._listen,
            self._schema,
            heartbeat_interval=heartbeat_interval,
            clock=self._clock,
            rng=self._rng,
        )

    @property
    def transactions(self) -> Transactions:
        """Those that handlers and callers write in."""
        return self._transactions

    def on_wake(self, wake: Callable[[], None]) -> None:
        """A worker in this process: it is woken directly, the others by notification."""
        self._wakes.on_wake(wake)

    async def _close(self) -> None:
        await self._notifying.close()
        await self.store.close()
        for lane in self._lanes:
            await lane.close()
        if not self._connect.silent:
            await self._pool.close()

    def _terminate(self) -> None:
        self._notifying.terminate()
        self.store.terminate()
        for lane in self._lanes:
            lane.terminate()
        self._pool.terminate()
