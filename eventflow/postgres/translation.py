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
    "25P04",  # the transaction took too long, by a timeout somebody set
)
_REFUSED = ("22", "23", "54")
_NO_SCHEMA = ("3F000", "42P01", "42703", "42883")
_NEVER_RUN = ("57P03", "57P05")  # the server was starting, or had ended a session that was idle for too long
_SET_AT_LOGIN = ("25006", "57014")  # read only, statement_timeout

_READ_ONLY = "the database is read only (a standby, or default_transaction_read_only is set)"
_LOST_STATEMENT = "another session prepared the statement; through a pooler, statement_cache_size must be 0 or left out"
_EXPLANATIONS = {"25006": _READ_ONLY, "26000": _LOST_STATEMENT, "42P05": _LOST_STATEMENT}

DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
"""Everything the driver raises for reasons outside this program."""


def translate(error: BaseException, schema: str = DEFAULT_SCHEMA) -> DatabaseError:
    """The error to raise from a driver's."""
    state = _sqlstate(error)
    if state in _NO_SCHEMA:
        return SchemaVersionError(schema, None, 0) if state in ("3F000", "42P01") else DatabaseError(str(error))
    if state == "55P03":
        return LockBusyError(str(error))
    text = str(error) or type(error).__name__
    if state in _EXPLANATIONS:
        text = f"{_EXPLANATIONS[state]}: {text}"
    if not state or state.startswith(_UNAVAILABLE):
        return DatabaseUnavailableError(text)
    if state.startswith(_REFUSED):
        return ValueRefusedError(f"{state}: {text}")
    return DatabaseError(f"{state}: {text}")


def may_have_committed(error: BaseException) -> bool:
    """Whether a statement that ended with this error may have been committed all the same."""
    state = _sqlstate(error)
    # A server that refuses says so with an SQLSTATE and has rolled back; one that shuts down may have committed.
    return not state or (state.startswith(("08", "57P")) and state not in _NEVER_RUN)


def came_after_commit(error: BaseException) -> bool:
    """Whether insert_and_wake failed in what follows its commit: the queue of notifications may be full."""
    where: str = getattr(error, "context", None) or ""
    if "wake_workers" in where:
        return True
    limits = (asyncpg.ProgramLimitExceededError, asyncpg.InsufficientResourcesError, asyncpg.QueryCanceledError)
    return "insert_jobs" not in where and isinstance(error, limits)


def needs_new_session(error: BaseException) -> bool:
    """Whether a setting stands in the way that a session is given when it begins: it may have been changed by now."""
    return _sqlstate(error) in _SET_AT_LOGIN


def _sqlstate(error: BaseException) -> str:
    if isinstance(error, asyncpg.ConnectionDoesNotExistError) and isinstance(error.__cause__, asyncpg.PostgresError):
        error = error.__cause__  # what the server said before it closed the connection
    return getattr(error, "sqlstate", None) or ""
