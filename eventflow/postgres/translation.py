"""The driver's errors end here: from SQLSTATE to eventflow's own."""

import asyncpg

from eventflow.errors import (
    DatabaseError,
    DatabaseUnavailableError,
    LockBusyError,
    SchemaVersionError,
    ValueRefusedError,
)
from eventflow.postgres.statements import DEFAULT_SCHEMA

_UNAVAILABLE = (
    "08",  # connection exceptions
    "53",  # out of connections, memory, disk
    "57P",  # shut down, crashed, starting up
    "25006",  # read only: not the primary
    "40001",  # serialization failure
    "40P01",  # deadlock
    "55000",  # accepts no connections: starting, stopping, being dropped
    "57014",  # cancelled, by a timeout somebody set
    "25P03",  # idle in transaction, by a timeout somebody set
)
_REFUSED = ("22", "23", "54")
_NO_SCHEMA = ("3F000", "42P01", "42703", "42883")

DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
"""Everything the driver raises for reasons outside this program."""


def translate(error: BaseException, schema: str = DEFAULT_SCHEMA) -> DatabaseError:
    """The error to raise from a driver's."""
    state = getattr(error, "sqlstate", None) or ""
    if state in _NO_SCHEMA:
        return SchemaVersionError(schema, None, 0) if state in ("3F000", "42P01") else DatabaseError(str(error))
    if state == "55P03":
        return LockBusyError(str(error))
    if not state or state.startswith(_UNAVAILABLE):
        return DatabaseUnavailableError(str(error) or type(error).__name__)
    if state.startswith(_REFUSED):
        return ValueRefusedError(f"{state}: {error}")
    return DatabaseError(f"{state}: {error}")


def may_have_committed(error: BaseException) -> bool:
    """Whether a statement that ended with this error may have been committed all the same."""
    state = getattr(error, "sqlstate", None) or ""
    # A server that refuses says so with an SQLSTATE and has rolled back; one that shuts down may have committed.
    return not state or state.startswith(("08", "57P"))
