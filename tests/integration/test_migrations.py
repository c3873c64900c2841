"""Migrations: from nothing, again, as a script, under another schema name, and by who may create no roles."""

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from uuid import uuid4

import anyio
import asyncpg
import pytest

from eventflow import DatabaseError, EventFlowError, JobState, SchemaVersionError
from eventflow.postgres import Connection, applied_version, latest_version, migrate, migration_script, migrations
from tests.support.journal import Journal, Note, ended, flow_of, query
from tests.support.postgres import Database

_OBJECTS = """
SELECT format('%s %s owner %s acl %s', relkind, relname, relowner::regrole,
    array(SELECT acl::text FROM unnest(relacl) AS acl ORDER BY 1)) AS shown
FROM pg_class WHERE relnamespace = 'eventflow'::regnamespace
UNION ALL
SELECT format('column %s.%s %s %s', attrelid::regclass, attname, atttypid::regtype, attacl::text) FROM pg_attribute
WHERE attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'eventflow'::regnamespace) AND attnum > 0
UNION ALL
SELECT format('check %s', pg_get_constraintdef(oid)) FROM pg_constraint
WHERE connamespace = 'eventflow'::regnamespace
UNION ALL
SELECT format('function %s %s %s', oid::regprocedure, md5(prosrc), proacl::text) FROM pg_proc
WHERE pronamespace = 'eventflow'::regnamespace
UNION ALL SELECT format('migration %s %s', version, name) FROM eventflow.migration
ORDER BY shown
"""


@asynccontextmanager
async def connected(dsn: str) -> AsyncGenerator[Connection]:
    """A connection for a while."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def objects(dsn: str) -> list[str]:
    """Everything that migrations made, as text."""
    return [row["shown"] for row in await query(dsn, _OBJECTS)]


def without_days(shown: Sequence[str]) -> list[str]:
    """What was made a day later is named by other days."""
    return sorted(re.sub(r"\d{4}-?\d{2}-?\d{2}", "day", text) for text in shown)


async def test_repeated_migration_changes_nothing(empty_database: Database) -> None:
    """The first applies all, in order; the second nothing."""
    async with connected(empty_database.admin) as connection:
        assert await applied_version(connection) is None
        first = await migrate(connection)
        made = await objects(empty_database.admin)
        second = await migrate(connection)

        assert [migration.version for migration in first] == list(range(1, latest_version() + 1))
        assert (second, await applied_version(connection)) == ([], latest_version())
    assert await objects(empty_database.admin) == made


async def test_concurrent_migrations_wait_for_each_other(empty_database: Database) -> None:
    """As when several processes of a deployment start at once: one applies, the others find it done."""
    applied: list[int] = []

    async def migrate_once() -> None:
        async with connected(empty_database.admin) as connection:
            applied.append(len(await migrate(connection)))

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(migrate_once)

    assert sorted(applied) == [0, 0, 0, len(migrations())]


async def test_script_makes_what_migrate_makes(empty_database: Database, database: Database) -> None:
    """``--sql`` for who applies migrations by other means: the same objects, owners and grants."""
    async with connected(empty_database.admin) as connection:
        await connection.execute(migration_script())

    script_made, migrate_made = await objects(empty_database.admin), await objects(database.admin)
    assert without_days(script_made) == without_days(migrate_made)


async def test_failed_migration_leaves_nothing(empty_database: Database) -> None:
    """All in one transaction."""
    async with connected(empty_database.admin) as connection:
        await connection.execute("CREATE SCHEMA eventflow")
        await connection.execute("CREATE TABLE eventflow.queue (mine integer)")
        with pytest.raises(DatabaseError):
            await migrate(connection)
        assert await applied_version(connection) is None
        assert await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'eventflow'") == 1


async def test_other_schema_works_end_to_end(database: Database, journal: Journal) -> None:
    """Beside the default one, with roles and a notification channel of its own; neither sees the other's jobs."""
    async with connected(database.admin) as connection:
        await migrate(connection, "orders")
        await connection.execute("GRANT orders_worker TO test_worker")
    flow = flow_of(journal)
    try:
        async with flow.open(database.worker, schema="orders") as orders, flow.open(database.worker) as default:
            waiting = await default.jobs.schedule(Note(label="default"))
            async with orders.worker():
                job_id = await orders.jobs.schedule(Note(label="orders"))
                assert (await ended(orders, job_id)).state is JobState.SUCCEEDED
                await orders.jobs.schedule_many([Note()] * 400)
                await journal.until_runs(401)
                await query(database.worker, "SELECT orders.schedule_job('Note', 1, '{\"label\": \"sql\"}')")
                await journal.until_started("sql")
            record = await default.jobs.get(waiting)
            assert record is not None
            assert (record.state, await orders.jobs.get(waiting)) == (JobState.WAITING, None)
        assert "default" not in journal.labels()
    finally:
        async with connected(database.admin) as connection:
            await connection.execute("DROP SCHEMA orders CASCADE")
            for role in ("worker", "producer", "viewer", "owner"):
                await connection.execute(f"DROP OWNED BY orders_{role}; DROP ROLE orders_{role}")


@pytest.mark.parametrize("schema", ["", "Orders", "a b", 'x"; DROP SCHEMA eventflow; --', "9", "s" * 49])
async def test_schema_names_are_checked(dsn: str, journal: Journal, schema: str) -> None:
    """Names go into SQL as they are, so only plain ones are taken."""
    with pytest.raises((ValueError, EventFlowError)):
        async with flow_of(journal).open(dsn, schema=schema):
            pass


async def test_user_without_createrole_migrates(empty_database: Database) -> None:
    """Then there are no roles of this schema, and that user owns everything."""
    user = f"plain_{uuid4().hex[:8]}"
    await query(empty_database.admin, f"CREATE ROLE {user} LOGIN PASSWORD 'only-for-tests'")
    await query(empty_database.admin, f"GRANT CREATE ON DATABASE {empty_database.name} TO {user}")
    try:
        async with connected(empty_database.worker.replace("test_worker", user)) as connection:
            await migrate(connection, "plain")
            await connection.execute("SELECT plain.schedule_job('Note', 1, '{}')")
            assert await connection.fetchval("SELECT count(*) FROM plain.job") == 1
        owners = await query(
            empty_database.admin,
            "SELECT DISTINCT relowner::regrole::text AS owner FROM pg_class WHERE relnamespace = 'plain'::regnamespace",
        )
        assert [row["owner"] for row in owners] == [user]
    finally:
        await query(empty_database.admin, f"DROP OWNED BY {user} CASCADE")
        await query(empty_database.admin, f"DROP ROLE {user}")


async def test_missing_tables_are_one_clear_error(empty_database: Database, journal: Journal) -> None:
    """It names the command that makes them; nothing is made at run time."""
    with pytest.raises(SchemaVersionError, match="eventflow migrate"):
        async with flow_of(journal).open(empty_database.admin):
            pass
    [row] = await query(empty_database.admin, "SELECT to_regnamespace('eventflow') IS NULL AS missing")
    assert row["missing"]


@pytest.mark.parametrize(("found", "hint"), [(0, "eventflow migrate"), (999, "deploy the code")])
async def test_tables_of_another_version_are_one_clear_error(
    dsn: str, admin_dsn: str, journal: Journal, found: int, hint: str
) -> None:
    """Older: migrate. Newer: this code is too old, and so is its ``migrate``."""
    await query(admin_dsn, "DELETE FROM eventflow.migration")
    await query(admin_dsn, "INSERT INTO eventflow.migration (version, name) VALUES ($1, 'other')", found)
    with pytest.raises(SchemaVersionError, match=hint) as raised:
        async with flow_of(journal).open(dsn):
            pass

    assert (raised.value.found, raised.value.wanted) == (found, latest_version())
    if found > latest_version():
        async with connected(admin_dsn) as connection:
            with pytest.raises(SchemaVersionError):
                await migrate(connection)
