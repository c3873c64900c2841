"""Transactions of the user, and what is scheduled in them."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeAlias

import anyio
import asyncpg
from asyncpg.transaction import Transaction as DriverTransaction

from eventflow.errors import CommitUnknownError
from eventflow.eventstore import StreamId
from eventflow.failpoints import failpoint
from eventflow.ids import JobId
from eventflow.postgres.connection import STATEMENT_SECONDS, AnyConnection, Connection
from eventflow.postgres.statements import statement
from eventflow.postgres.translation import DRIVER_ERRORS, may_have_committed, translate

PooledConnection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

END_SECONDS = 10.0
"""How long a commit or rollback may take, also when cancelled."""
ACQUIRE_SECONDS = 30.0
"""How long a transaction may wait for a connection of the pool."""


class Transaction:
    """What was written for eventflow in one open transaction."""

    def __init__(self) -> None:
        self.is_used = False
        self.ids: list[JobId] = []
        self.soonest_us: int | None = None

    def add(self, ids: Sequence[JobId], soonest_us: int | None) -> None:
        """Something was written; of these jobs the first is ready in so many microseconds."""
        self.is_used = True
        self.ids.extend(ids)
        if soonest_us is not None:
            self.soonest_us = soonest_us if self.soonest_us is None else min(self.soonest_us, soonest_us)


class Transactions:
    """
    Opens transactions on pooled connections, and knows those that are open.

    Args:
        pool: Where connections come from.
        committed: Called after a commit with the time until the first job scheduled in it.
    """

    def __init__(self, pool: Pool, schema: str, *, committed: Callable[[int], None]) -> None:
        self._pool = pool
        self._schema = schema
        self._committed = committed
        self._open: dict[int, Transaction] = {}

    def find(self, connection: object) -> Transaction | None:
        """The open transaction on this connection, if it is one of ours."""
        return self._open.get(id(connection))

    @asynccontextmanager
    async def begin(self, *, read_committed: bool = False) -> AsyncGenerator[PooledConnection]:
        """
        A connection in a transaction: committed when the block ends, rolled back when it raises.

        Args:
            read_committed: Each statement sees what was committed before it, whatever is set for the role.

        Raises:
            DatabaseUnavailableError: there was no connection; nothing was written.
            CommitUnknownError: the connection broke during the commit.
            DatabaseError: jobs were scheduled in it, but a statement failed whose error the block kept to itself, so
                that there is nothing left to commit.
        """
        transaction = Transaction()
        try:
            connection = await self._pool.acquire(timeout=ACQUIRE_SECONDS)
        except DRIVER_ERRORS as exc:
            raise translate(exc, self._schema) from exc
        try:
            self._open[id(connection)] = transaction
            scope = connection.transaction(isolation="read_committed" if read_committed else None)
            await self._start(connection, scope)
            failpoint("transaction.opened")
            try:
                yield connection
            except BaseException:
                await roll_back(connection, scope)
                raise
            await self._commit(connection, scope, transaction)
        finally:
            del self._open[id(connection)]
            # If resetting it fails, the pool drops the connection; what was committed stays so.
            with anyio.CancelScope(shield=True), suppress(*DRIVER_ERRORS):
                await self._pool.release(connection, timeout=END_SECONDS)
        if transaction.soonest_us is not None:
            self._committed(transaction.soonest_us)

    async def lock(self, connection: AnyConnection, stream: StreamId) -> None:
        """
        Keep others from writing to a stream until the connection's transaction has ended.

        Raises:
            DatabaseUnavailableError: others hold it for too long.
        """
        try:
            await connection.fetchrow(
                statement("lock_stream", self._schema),
                stream.aggregate_name,
                stream.aggregate_id,
                timeout=STATEMENT_SECONDS,
            )
        except DRIVER_ERRORS as exc:
            raise translate(exc, self._schema) from exc
        failpoint("stream.locked")

    async def _start(self, connection: PooledConnection, scope: DriverTransaction) -> None:
        try:
            with anyio.fail_after(STATEMENT_SECONDS):  # the pool's connections have no limit of their own
                await scope.start()
        except BaseException as exc:
            await roll_back(connection, scope)
            if isinstance(exc, DRIVER_ERRORS):
                raise translate(exc, self._schema) from exc
            raise

    async def _commit(self, connection: PooledConnection, scope: DriverTransaction, transaction: Transaction) -> None:
        if transaction.is_used:
            await self._check_not_aborted(connection, scope)
        failpoint("transaction.committing")
        try:
            with anyio.fail_after(END_SECONDS, shield=True):  # half a commit would be an unknown one
                await scope.commit()
        except DRIVER_ERRORS as exc:
            if may_have_committed(exc):
                raise CommitUnknownError(transaction.ids) from exc
            raise translate(exc, self._schema) from exc
        failpoint("transaction.committed")

    async def _check_not_aborted(self, connection: PooledConnection, scope: DriverTransaction) -> None:
        """COMMIT of an aborted transaction rolls back and reports no error: its jobs would be lost in silence."""
        try:
            await connection.execute("SELECT")
        except BaseException as exc:
            await roll_back(connection, scope)
            if isinstance(exc, DRIVER_ERRORS):
                raise translate(exc, self._schema) from exc
            raise


@asynccontextmanager
async def atomic(connection: Connection) -> AsyncGenerator[None]:
    """
    A transaction on a connection of our own, read committed: each statement sees what was committed before it.

    Unless the server itself refused something, the connection is dropped with it: a ROLLBACK would wait for the same
    server as long again.
    """
    scope = connection.transaction(isolation="read_committed")
    try:
        await scope.start()
        yield
        await scope.commit()
    except asyncpg.PostgresError:
        await roll_back(connection, scope)
        raise
    except BaseException:
        connection.terminate()
        raise


async def roll_back(connection: AnyConnection, scope: DriverTransaction) -> None:
    """
    End a transaction whose block was left by an exception, within a bounded time, also when cancelled.

    If that fails, or nobody knows whether it has begun, the connection is dropped: then the server does it.
    """
    undone = False
    try:
        with anyio.move_on_after(END_SECONDS, shield=True), suppress(*DRIVER_ERRORS):
            await scope.rollback()
            undone = True
    finally:
        if not undone:
            with suppress(asyncpg.InterfaceError):  # the pool has dropped it already
                connection.terminate()
