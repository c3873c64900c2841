"""Servers where nobody is a superuser, and rows that a producer should not be able to write."""

from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from eventflow.postgres import Connection, applied_version, latest_version, migrate
from tests.support.postgres import PASSWORD, Database

COLUMNS = "id, queue_id, due_at, ready_at, name, version, payload"
VALUES = "gen_random_uuid(), 1, now(), now(), 'Send', 1, '{}'"


@pytest.mark.parametrize("may", ["CREATEROLE", "NOCREATEROLE"])
async def test_owner_of_a_database_who_is_no_superuser_migrates(empty_database: Database, may: str) -> None:
    """With or without the right to make roles, and where another database of the cluster has them already."""
    user = f"managed_{may.lower()}"
    admin: Connection = await asyncpg.connect(empty_database.admin)
    await admin.execute(f"DROP ROLE IF EXISTS {user}")
    await admin.execute(f"CREATE ROLE {user} LOGIN {may} PASSWORD '{PASSWORD}'")
    await admin.execute(f"ALTER DATABASE {empty_database.name} OWNER TO {user}")
    try:
        parts = urlsplit(empty_database.worker)
        host = parts.netloc.rpartition("@")[2]
        owner = await asyncpg.connect(urlunsplit(parts._replace(netloc=f"{user}:{PASSWORD}@{host}")))
        try:
            await migrate(owner)
            assert await applied_version(owner) == latest_version()
            await owner.fetchval("SELECT eventflow.schedule_job('Send', 1, '{}')")
        finally:
            await owner.close()
    finally:
        await admin.execute(f"REASSIGN OWNED BY {user} TO CURRENT_USER; DROP OWNED BY {user}; DROP ROLE {user}")
        await admin.close()


@pytest.mark.parametrize(
    ("column", "value"), [("attempt", "2147483647"), ("claim_no", "2147483647"), ("crashes", "4"), ("parked", "'me'")]
)
async def test_producer_writes_only_what_scheduling_writes(producer_dsn: str, column: str, value: str) -> None:
    """What belongs to workers is not a producer's to set."""
    producer: Connection = await asyncpg.connect(producer_dsn)
    try:
        await producer.execute(f"INSERT INTO eventflow.job ({COLUMNS}) VALUES ({VALUES})")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await producer.execute(f"INSERT INTO eventflow.job ({COLUMNS}, {column}) VALUES ({VALUES}, {value})")
    finally:
        await producer.close()


async def test_instants_that_no_statement_could_read_are_refused(producer_dsn: str) -> None:
    """One row with an infinite time would stop every claim."""
    producer: Connection = await asyncpg.connect(producer_dsn)
    try:
        for endless in ("'-infinity'", "'infinity'"):
            values = f"gen_random_uuid(), 1, now(), {endless}, 'Send', 1, '{{}}'"
            with pytest.raises(asyncpg.CheckViolationError):
                await producer.execute(f"INSERT INTO eventflow.job ({COLUMNS}) VALUES ({values})")
    finally:
        await producer.close()
