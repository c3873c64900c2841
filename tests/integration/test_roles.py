"""Least privilege: each role can do its work, and nothing beyond it."""

from datetime import timedelta
from uuid import uuid4

import asyncpg
import pytest

from eventflow import DatabaseError, JobState
from tests.support.journal import Journal, Note, count_jobs, ended, flow_of, query
from tests.support.postgres import Database

READS = (
    "SELECT * FROM eventflow.job",
    "SELECT payload FROM eventflow.running",
    "SELECT * FROM eventflow.job_history",
    "SELECT error FROM eventflow.dead_letter",
    "SELECT * FROM eventflow.worker",
    "SELECT * FROM eventflow.signal",
)
CHANGES = (
    "UPDATE eventflow.job SET priority = 0",
    "DELETE FROM eventflow.job",
    "DELETE FROM eventflow.running",
    "DELETE FROM eventflow.job_history",
    "DELETE FROM eventflow.dead_letter",
    "UPDATE eventflow.worker SET beat = 0",
    "INSERT INTO eventflow.signal VALUES (gen_random_uuid(), gen_random_uuid(), 1, 'cancel')",
    "INSERT INTO eventflow.queue (name) VALUES ('mine')",
    "UPDATE eventflow.migration SET version = 99",
    "SELECT eventflow.maintain_history()",
)
DEFINITIONS = (
    "CREATE TABLE eventflow.mine (id integer)",
    "ALTER TABLE eventflow.job ADD COLUMN mine integer",
    "DROP TABLE eventflow.dead_letter",
    "CREATE INDEX ON eventflow.job (name)",
    "TRUNCATE eventflow.job",
    "CREATE FUNCTION eventflow.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    "ALTER FUNCTION eventflow.uuid_v7() SECURITY DEFINER",
    "CREATE TRIGGER mine AFTER INSERT ON eventflow.job EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "DROP SCHEMA eventflow CASCADE",
)


async def refused(dsn: str, sql: str) -> bool:
    """Whether a statement fails for want of privilege."""
    try:
        await query(dsn, sql)
    except asyncpg.InsufficientPrivilegeError:
        return True
    return False


async def allowed(dsn: str, statements: tuple[str, ...]) -> list[str]:
    """Those of the statements that are not refused."""
    return [sql for sql in statements if not await refused(dsn, sql)]


async def test_producer_schedules_in_every_way(dsn: str, producer_dsn: str, journal: Journal) -> None:
    """One, many, by COPY, in a transaction, from SQL, into queues that are new; a worker runs them."""
    flow = flow_of(journal)
    async with flow.open(producer_dsn) as producing, flow.open(dsn) as working, working.worker():
        ids = [await producing.jobs.schedule(Note(), queue="first seen here")]
        ids += await producing.jobs.schedule_many([Note()] * 400)
        async with producing.transaction() as connection:
            ids.append(await producing.jobs.schedule(Note(), connection=connection))
        [row] = await query(producer_dsn, "SELECT eventflow.schedule_job('Note', 1, '{}', queue => 'another') AS id")
        ids.append(type(ids[0]).of(str(row["id"])))
        await journal.until_runs(len(ids))

    assert sorted(journal.ids()) == sorted(ids)


async def test_producer_can_do_nothing_else(dsn: str, producer_dsn: str, journal: Journal) -> None:
    """Neither read, nor change, nor cancel, nor work, nor define."""
    async with flow_of(journal).open(dsn) as app:
        job_id = await app.jobs.schedule(Note())
    async with flow_of(journal).open(producer_dsn) as app:
        for forbidden in (app.jobs.cancel(job_id), app.jobs.get(job_id), app.jobs.find()):
            with pytest.raises(DatabaseError):
                await forbidden
        with pytest.raises(DatabaseError):
            await app.jobs.reschedule(job_id, delay=timedelta(0))

    assert await allowed(producer_dsn, (*READS, *CHANGES, *DEFINITIONS)) == []


async def test_viewer_reads_everything_and_changes_nothing(
    dsn: str, viewer_dsn: str, admin_dsn: str, journal: Journal
) -> None:
    """It looks jobs up; it can neither schedule nor cancel."""
    async with flow_of(journal).open(dsn) as app, app.worker():
        job_id = await app.jobs.schedule(Note(), queue="mail")
        await ended(app, job_id)
    async with flow_of(journal).open(viewer_dsn) as app:
        record = await app.jobs.get(job_id)
        assert record is not None
        assert (record.state, record.queue) == (JobState.SUCCEEDED, "mail")
        assert [found.id for found in await app.jobs.find(queue="mail")] == [job_id]
        for forbidden in (app.jobs.schedule(Note()), app.jobs.cancel(job_id)):
            with pytest.raises(DatabaseError):
                await forbidden

    assert await allowed(viewer_dsn, (*CHANGES, *DEFINITIONS)) == []
    assert await allowed(viewer_dsn, READS) == list(READS)
    assert await count_jobs(admin_dsn) == 1


async def test_worker_defines_nothing(dsn: str) -> None:
    """It makes and drops partitions of the history by the one function that may; no other DDL."""
    assert await allowed(dsn, DEFINITIONS) == []
    assert await allowed(dsn, ("DELETE FROM eventflow.dead_letter", "UPDATE eventflow.migration SET version = 9")) == []
    [row] = await query(dsn, "SELECT eventflow.maintain_history('{90}') AS made")
    assert row["made"] == 5  # from the day before, if the clock is set back, to three days ahead


async def test_functions_cannot_be_led_astray(dsn: str, producer_dsn: str, admin_dsn: str) -> None:
    """What runs with its owner's rights uses no name that a caller could define first."""
    rows = await query(
        admin_dsn,
        "SELECT proname, proconfig FROM pg_proc WHERE pronamespace = 'eventflow'::regnamespace"
        " AND prosqlbody IS NULL"  # its names are bound already
        " AND (prokind = 'f' OR prosecdef)",  # a procedure that commits can have no settings, nor its owner's rights
    )
    assert rows
    for row in rows:
        assert "search_path=pg_catalog, pg_temp" in (row["proconfig"] or []), row["proname"]
    connection = await asyncpg.connect(producer_dsn)
    try:
        await connection.execute("CREATE TEMP TABLE queue (id integer, name text)")
        await connection.execute("INSERT INTO pg_temp.queue VALUES (-1, 'mine')")
        await connection.execute("SELECT eventflow.ensure_queue('mine')")
    finally:
        await connection.close()
    [row] = await query(admin_dsn, "SELECT id FROM eventflow.queue WHERE name = 'mine'")
    assert row["id"] > 0


async def test_owner_owns_everything(database: Database) -> None:
    """No object belongs to who happened to run the migrations, and nobody else was granted anything."""
    [row] = await query(
        database.admin,
        """
        SELECT array_agg(DISTINCT owner) AS owners FROM (
            SELECT relowner::regrole::text AS owner FROM pg_class
            WHERE relnamespace = 'eventflow'::regnamespace AND relkind IN ('r', 'p', 'S')
            UNION SELECT proowner::regrole::text FROM pg_proc WHERE pronamespace = 'eventflow'::regnamespace
            UNION SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'eventflow'
        ) AS owned
        """,
    )
    assert row["owners"] == ["eventflow_owner"]
    stranger = f"stranger_{uuid4().hex[:8]}"
    await query(database.admin, f"CREATE ROLE {stranger} LOGIN PASSWORD 'only-for-tests'")
    try:
        as_stranger = database.worker.replace("test_worker", stranger)
        assert await allowed(as_stranger, (*READS, *CHANGES, *DEFINITIONS)) == []
        assert await refused(as_stranger, "SELECT eventflow.schedule_job('Note', 1, '{}')")
    finally:
        await query(database.admin, f"DROP ROLE {stranger}")
