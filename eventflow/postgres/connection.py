"""Connections: how one is made, and one that is kept, repaired, and used by one statement at a time."""

import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import anyio
import asyncpg

from eventflow.errors import DatabaseError
from eventflow.postgres.pooler import Dialer
from eventflow.postgres.translation import DRIVER_ERRORS, needs_new_session, translate

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
AnyConnection: TypeAlias = "Connection | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"

CONNECT_SECONDS = 5.0
ATTEMPT_SECONDS = 1.0
"""An attempt to connect that takes longer gets company: what was sent while the network was away is lost with it."""
STATEMENT_SECONDS = 8.0
"""Longest time one statement may take; beyond it the connection counts as broken."""
SILENCE_SECONDS = 0.4
"""A statement that was cut off after waiting for so long says that the server may be out of reach."""
IDLE_SECONDS = 30.0
"""A connection that was not used for so long is tried out first: a firewall may have forgotten it."""
TRIAL_SECONDS = 1.0
"""How long that may take."""
POLITE_SECONDS = 0.3
"""How long closing a connection may take."""
READ_COMMITTED = "set_config('default_transaction_isolation', 'read committed', false)"
"""What our statements are made for, whatever is set for the role: any higher, and claims conflict all the time."""
ABANDONED = "set_config('idle_in_transaction_session_timeout', '8s', false)"
"""The server never hears of a client that the network has lost: the rows its transaction has locked must not wait."""
ABANDONED_IN_HANDLER = """
set_config('idle_in_transaction_session_timeout',
    coalesce(nullif(current_setting('idle_in_transaction_session_timeout'), '0'), '60s'), false)
""".strip()
"""The same where handlers write in a transaction, which may wait for something else; unless a limit is set already."""


class Connector:
    """
    Opens connections to one address, and knows whether its server has been answering.

    Connections share a network. While one of them is not answered, the others may be as dead without showing it;
    so every :class:`Lane` tells here when it was answered, and when it gave up waiting.

    Args:
        attempt: Opens a connection; raises the driver's errors.
    """

    def __init__(self, attempt: Callable[[], Awaitable[Connection]]) -> None:
        self._attempt = attempt
        self._answered_at = float("-inf")
        self._unanswered_since = float("-inf")

    def answered(self, at: float) -> None:
        """The server has answered at this time, in monotonic seconds."""
        self._answered_at = max(self._answered_at, at)

    def not_answered(self, since: float) -> None:
        """A statement sent at this time was not answered for so long that it was given up."""
        self._unanswered_since = max(self._unanswered_since, since)

    @property
    def silent(self) -> bool:
        """Nothing was answered since a statement was sent in vain."""
        return self._unanswered_since > self._answered_at

    def may_have_lost(self, answered_at: float) -> bool:
        """Whether a connection that was answered last at this time may have gone with one that was not."""
        return answered_at < self._unanswered_since

    async def __call__(self) -> Connection:
        """
        Open a connection: the first that comes about, of attempts that begin a second apart.

        Raises the driver's errors, but for an address that cannot be read: DatabaseError.
        """
        made: list[Connection] = []
        failed: list[Exception] = []
        ended = anyio.Event()

        async def attempt() -> None:
            try:
                made.append(await self._attempt())
            except Exception as exc:  # noqa: BLE001 - raised below
                failed.append(exc)
            ended.set()

        try:
            async with anyio.create_task_group() as group:
                while not ended.is_set():
                    group.start_soon(attempt)
                    with anyio.move_on_after(ATTEMPT_SECONDS):
                        await ended.wait()
                group.cancel_scope.cancel()
            if not made:
                raise failed[0]
            return made.pop()
        finally:
            for spare in made:
                spare.terminate()


def connector(dsn: str, *, name: str, timeout: float = CONNECT_SECONDS, **options: Any) -> Connector:
    """
    What opens connections to *dsn*.

    Args:
        dsn: A libpq address.
        name: Shown in ``pg_stat_activity``.
        timeout: Seconds for one attempt.
        options: Further arguments of ``asyncpg.connect``.
    """
    dial = Dialer(name, set_up=f"{READ_COMMITTED}, {ABANDONED}")

    async def attempt() -> Connection:
        try:
            return await dial(
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

    return Connector(attempt)


class Lane:
    """
    One connection of one's own, for statements that follow each other.

    It is opened when first needed, and again after it broke. A statement that was cut off leaves it in an unknown
    state, so the connection is terminated, not closed: closing a half-open socket would hang.

    Args:
        connect: Opens the connection.
        schema: Where the tables are.
        idle: Seconds without a statement after which the connection is tried out before it is used.
        queued: Whether tasks wait here for each other. One that never does takes the lane without a turn of the loop.
    """

    def __init__(self, connect: Connector, schema: str, *, idle: float = IDLE_SECONDS, queued: bool = True) -> None:
        self._connect = connect
        self._schema = schema
        self._idle = idle
        self._lock = anyio.Lock(fast_acquire=not queued)
        self._connection: Connection | None = None
        self._answered_at = float("-inf")

    async def fetch(self, query: str, *args: Any) -> list[asyncpg.Record]:
        """Run one statement in a transaction of its own and return its rows."""
        async with self.connection() as connection:
            return await connection.fetch(query, *args)

    async def fetchrow(self, query: str, *args: Any) -> asyncpg.Record | None:
        """The same, for the first row."""
        async with self.connection() as connection:
            return await connection.fetchrow(query, *args)

    async def answers(self, within: float) -> bool:
        """Whether the server answers at all in so many seconds."""
        with anyio.move_on_after(within):
            try:
                await self.fetchrow("SELECT")
            except DatabaseError:
                return False
            return True
        return False

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """
        The connection, for this task alone.

        Raises:
            DatabaseUnavailableError: it cannot be opened, or broke.
            DatabaseError: the statement was refused.
        """
        async with self._lock:
            asked_at = time.monotonic()
            try:
                connection = await self._usable()
                asked_at = time.monotonic()
                yield connection
            except asyncpg.PostgresError as exc:
                if self._connection is not None and self._connection.is_closed():
                    self._connection = None
                else:
                    self._answered()
                if needs_new_session(exc):
                    self.terminate()
                raise translate(exc, self._schema) from exc
            except DRIVER_ERRORS as exc:
                self._cut_off(asked_at)
                raise translate(exc, self._schema) from exc
            except BaseException:
                self._cut_off(asked_at)
                raise
            self._answered()

    async def _usable(self) -> Connection:
        if self._connection is not None and self._connect.may_have_lost(self._answered_at):
            self.terminate()
        if self._connection is not None and time.monotonic() - self._answered_at >= self._idle:
            await self._try_out(self._connection)
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
            self._answered()
        return self._connection

    async def _try_out(self, connection: Connection) -> None:
        try:
            await connection.fetchrow("SELECT", timeout=TRIAL_SECONDS)
        except DRIVER_ERRORS:
            self.terminate()

    def _answered(self) -> None:
        self._answered_at = time.monotonic()
        self._connect.answered(self._answered_at)

    def _cut_off(self, asked_at: float) -> None:
        if time.monotonic() - asked_at >= SILENCE_SECONDS:
            self._connect.not_answered(asked_at)
        self.terminate()

    def terminate(self) -> None:
        """Drop the connection without a word; the next statement opens another."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def close(self) -> None:
        """Close the connection, politely if the server answers at once."""
        async with self._lock:
            if self._connection is not None and not self._connect.silent:
                asked_at = time.monotonic()
                try:
                    await self._connection.close(timeout=POLITE_SECONDS)
                except DRIVER_ERRORS:
                    self._connect.not_answered(asked_at)
            self.terminate()


class LaneStack:
    """
    Lanes for several purposes, each with a share of them.

    A statement takes the lane that was used last, of those that are free: its server process is still warm, whatever
    it has done before. What one command does after another goes over one connection.
    """

    def __init__(self, connect: Connector, schema: str) -> None:
        self._connect = connect
        self._schema = schema
        self._all: list[Lane] = []
        self.free: list[Lane] = []

    def share(self, number: int) -> "Lanes":
        """So many lanes more, for one purpose: as many of them, whichever they are, are always there for it."""
        added = [Lane(self._connect, self._schema, queued=False) for _ in range(number)]
        self._all += added
        self.free += added
        return Lanes(self, number)

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._all)


class Lanes:
    """
    A share of a stack of lanes.

    Attributes:
        number: How many it may use at a time.
    """

    def __init__(self, stack: LaneStack, number: int) -> None:
        self.number = number
        self._stack = stack
        self._vacant = anyio.Semaphore(number, fast_acquire=True)

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """A connection for this task alone; see :meth:`Lane.connection`."""
        async with self._vacant:
            lane = self._stack.free.pop()
            try:
                async with lane.connection() as connection:
                    yield connection
            finally:
                self._stack.free.append(lane)
