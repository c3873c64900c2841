"""Poolers: noticed when connecting, because one in transaction mode runs every transaction in any of its sessions."""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, TypeAlias

import asyncpg

log = logging.getLogger("eventflow.postgres")

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

_LEARN_TYPES = "SELECT $1::uuid[], $2::boolean[], $3::smallint[], $4::integer[], $5::bigint[]"


class Dialer:
    """
    ``asyncpg.connect``, also through a pooler.

    What was prepared in one of a pooler's sessions is missing in the next. So nothing is prepared for later, unless
    *statement_cache_size* is given: PgBouncer can keep track of prepared statements from 1.21 on, and a pooler in
    session mode need not. One instance is for one address: it connects twice only until it knows of the pooler.

    Args:
        name: What the connections are for, in the log.
        set_up: An expression that is evaluated in every session that is not a pooler's.
    """

    def __init__(self, name: str, *, set_up: str = "") -> None:
        self._name = name
        self._set_up = set_up
        self._pooled = False

    async def __call__(self, *address: Any, **options: Any) -> Connection:
        """Connect, with the arguments of ``asyncpg.connect``; raises the driver's errors."""
        if not self._pooled:
            connection: Connection = await asyncpg.connect(*address, **options)
            with _terminated_on_error(connection):
                if await is_direct(connection, self._set_up):
                    return connection
            connection.terminate()
            self._found()
        connection = await asyncpg.connect(*address, **({"statement_cache_size": 0} | options))
        with _terminated_on_error(connection):
            await _learn_types(connection)
        return connection

    def _found(self) -> None:
        if not self._pooled:
            self._pooled = True
            log.info("pooler.found", extra={"connections": self._name})


async def is_direct(connection: Connection, then: str = "") -> bool:
    """
    Whether the server itself has answered the login: a pooler makes up the process id that the client is told.

    It is a simple query, for which nothing is prepared.

    Args:
        then: An expression that is evaluated if so.
    """
    found = await connection.execute(f"SELECT {then} WHERE pg_backend_pid() = {connection.get_server_pid()}")
    return found == "SELECT 1"


@contextmanager
def _terminated_on_error(connection: Connection) -> Generator[None]:
    try:
        yield
    except BaseException:
        connection.terminate()
        raise


async def _learn_types(connection: Connection) -> None:
    """
    Let the driver look the types of our statements up now, in one transaction.

    It turns jit off for that, and on again afterwards: in whichever session it is given by then.
    """
    async with connection.transaction():
        await connection.prepare(_LEARN_TYPES)
