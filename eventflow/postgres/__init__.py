"""Everything on Postgres; the only package that knows asyncpg."""

from eventflow.postgres.connection import Connection, Lane, connector
from eventflow.postgres.database import DEFAULT_POOL_SIZE, PostgresDatabase
from eventflow.postgres.job_store import PostgresJobStore
from eventflow.postgres.migrator import (
    Migration,
    applied_version,
    check_version,
    latest_version,
    migrate,
    migration_script,
    migrations,
)
from eventflow.postgres.presence import PostgresPresence
from eventflow.postgres.scheduler import PostgresJobScheduler
from eventflow.postgres.statements import DEFAULT_SCHEMA, check_schema
from eventflow.postgres.stories import Link, Stories
from eventflow.postgres.transactions import PooledConnection, Transactions

__all__ = [
    "DEFAULT_POOL_SIZE",
    "DEFAULT_SCHEMA",
    "Connection",
    "Lane",
    "Link",
    "Migration",
    "PooledConnection",
    "PostgresDatabase",
    "PostgresJobScheduler",
    "PostgresJobStore",
    "PostgresPresence",
    "Stories",
    "Transactions",
    "applied_version",
    "check_schema",
    "check_version",
    "connector",
    "latest_version",
    "migrate",
    "migration_script",
    "migrations",
]
