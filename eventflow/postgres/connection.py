"""Connections: how one is made, and one that is kept, repaired, and used by one statement at a time."""

import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, TypeVar

import anyio
import asyncpg

from eventflow.errors import DatabaseError
from eventflow.postgres.translation import DRIVER_ERRORS, translate

T = TypeVar("T")

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
AnyConnection: TypeAlias = "Connection | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
Connect = Callable[[], Awaitable[Connection]]

CONNECT_SECONDS = 5.0
STATEMENT_SECONDS = 8.0
"""Longest time one statement may take; beyond it the connection counts as broken."""


def connector(dsn: str, *, name: str, timeout: float = CONNECT_SECONDS, **options: Any) -> Connect:
    """
    A function that opens connections to *dsn*.

    Args:
        dsn: A libpq address.
        name: Shown in ``pg_stat_activity``.
        timeout: Seconds for one attempt.
        options: Further arguments of ``asyncpg.connect``.

    What it returns raises the driver's errors, but for an address that cannot be read: DatabaseError.
    """

    async def connect() -> Connection:
        try:
            return await asyncpg.connect(
                dsn,
                timeout=timeout,
                command_timeout=STATEMENT_SECONDS,
                server_settings={"application_name": f"eventflow {name} {os.getpid()}"},
                **options,
            )
        except asyncpg.ClientConfigurationError as exc:
            raise DatabaseError(f"the database's address cannot be used: {exc}") from exc
        except ValueError:  # from urllib or int(), whose words may hold a piece of the password
            raise DatabaseError(
                "the database's address cannot be read; special characters in user and password must be "
                "percent-encoded, as / is by %2F"
            ) from None

    return connect


class Lane:
    """
    One connection of one's own, for statements that follow each other.

    It is opened when first needed, and again after it broke. A statement that was cut off leaves it in an unknown
    state, so the connection is terminated, not closed: closing a half-open socket would hang.
    """

    def __init__(self, connect: Connect, schema: str) -> None:
        self._connect = connect
        self._schema = schema
        self._lock = anyio.Lock()
        self._connection: Connection | None = None

    async def fetch(self, query: str, *args: Any) -> list[asyncpg.Record]:
        """Run one statement in a transaction of its own and return its rows."""
        async with self.connection() as connection:
            return await connection.fetch(query, *args)

    async def fetchrow(self, query: str, *args: Any) -> asyncpg.Record | None:
        """The same, for the first row."""
        async with self.connection() as connection:
            return await connection.fetchrow(query, *args)

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """
        The connection, for this task alone.

        Raises:
            DatabaseUnavailableError: it cannot be opened, or broke.
            DatabaseError: the statement was refused.
        """
        async with self._lock:
            try:
                if self._connection is None or self._connection.is_closed():
                    self._connection = await self._connect()
                yield self._connection
            except asyncpg.PostgresError as exc:
                if self._connection is not None and self._connection.is_closed():
                    self._connection = None
                raise translate(exc, self._schema) from exc
            except DRIVER_ERRORS as exc:
                self.terminate()
                raise translate(exc, self._schema) from exc
            except BaseException:
                self.terminate()
                raise

    def terminate(self) -> None:
        """Drop the connection without a word; the next statement opens another."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def close(self) -> None:
        """Close the connection, politely if the server answers at once."""
        async with self._lock:
            if self._connection is not None:
                try:
                    await self._connection.close(timeout=1)
                except DRIVER_ERRORS:
                    self._connection.terminate()
                self._connection = None
