"""Jobs that a worker cannot run do not hold up those that it can."""

import json
from collections.abc import AsyncGenerator
from datetime import timedelta

import anyio
import asyncpg
import pytest

from eventflow import Job, JobContext, WorkerId, WorkerSettings
from eventflow.jobs import Interest, WorkerRecord
from eventflow.postgres import Connection, PostgresJobStore, connector
from eventflow.scheduling import Due
from tests.support.job_stores import PostgresDriver, after
from tests.support.journal import Journal, Note, duplicates, ended, flow_of
from tests.support.waiting import eventually

MANY = 100_000
INSERT_MANY = """
    INSERT INTO eventflow.job (id, queue_id, due_at, ready_at, name, version, payload)
    SELECT gen_random_uuid(), 1, clock_timestamp(), clock_timestamp(), 'New', 1, '{}' FROM generate_series(1, $1)
"""
COUNT_UPDATES = """
    CREATE TABLE updated (id uuid NOT NULL);
    CREATE FUNCTION note_updated() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
        'BEGIN INSERT INTO public.updated SELECT id FROM changed; RETURN NULL; END';
    CREATE TRIGGER note_updated AFTER UPDATE ON eventflow.job
        REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION note_updated();
"""
KNOWN = Interest(None, ("Note",), (1,))
FEW_BUFFERS = 60
"""What a claim may read more beside many jobs than beside none: larger indexes are deeper."""


class New(Job):
    """Only the new version of the application knows this one."""

    async def execute(self, context: JobContext) -> None:
        await (await context.services.aget(Journal)).note(context, "new")


class Old(Job):
    """Only the old version does."""

    async def execute(self, context: JobContext) -> None:
        await (await context.services.aget(Journal)).note(context, "old")


@pytest.fixture
async def admin(admin_dsn: str) -> AsyncGenerator[Connection]:
    """A superuser's connection to a database that notes each update of a waiting job."""
    connection = await asyncpg.connect(admin_dsn)
    await connection.execute(COUNT_UPDATES)
    yield connection
    await connection.close()


async def updates(admin: Connection) -> tuple[int, int]:
    """How many waiting jobs were updated, and how often the one that was most often."""
    row = await admin.fetchrow(
        "SELECT count(*) AS jobs, coalesce(max(times), 0) AS most"
        " FROM (SELECT count(*) AS times FROM updated GROUP BY id) AS t"
    )
    assert row is not None
    return row["jobs"], row["most"]


@pytest.mark.timeout(240)  # on a busy machine; otherwise ten seconds
async def test_jobs_that_nobody_knows_are_put_aside_once_and_run_when_somebody_does(
    dsn: str, admin: Connection, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Known jobs run meanwhile, beside 100,000 others and two workers that stumble over these.

    A worker that knows them runs them all, after no more than its first look at the store.
    """
    monkeypatch.setattr("eventflow.application.app.LONGEST_TICK_SECONDS", 600.0)
    newer = Journal()
    old, new = flow_of(journal), flow_of(newer)
    new.job(retention_days=0)(New)
    await admin.execute(INSERT_MANY, MANY)

    async def all_aside() -> bool:
        return not await admin.fetchval("SELECT count(*) FROM eventflow.job WHERE parked IS NULL")

    async with old.open(dsn) as app, app.worker(), old.open(dsn) as another, another.worker():
        await ended(app, await app.jobs.schedule(Note()))
        await eventually(all_aside, within=60.0)
        await ended(app, await app.jobs.schedule(Note()))
    assert await updates(admin) == (MANY, 1)

    async with new.open(dsn) as app, app.worker(WorkerSettings(tick_interval=600.0, concurrency=1000)):
        await newer.until_runs(MANY, within=120.0)
    assert len(newer.runs) == MANY
    assert duplicates(newer.ids()) == []
    assert await updates(admin) == (MANY, 1)


async def test_claim_reads_no_more_when_many_unknown_jobs_are_put_aside(dsn: str, admin: Connection) -> None:
    """Before, it walks over them; afterwards it reads about as much as with none, whatever dead entries they left."""
    store = PostgresJobStore(connector(dsn, name="test"), "eventflow")
    reader: Connection = await asyncpg.connect(dsn)
    try:
        worker = WorkerId.new()
        await store.open_worker(WorkerRecord(worker, "host", 1, "1.0", None, 10))

        async def buffers() -> int:
            await store.tick(worker, KNOWN)
            return await _buffers_of_claim(reader, worker, store)

        alone = await buffers()
        await admin.execute(INSERT_MANY, MANY)
        behind = await buffers()
        while (await store.tick(worker, KNOWN)).blocked:
            await store.park_unknown(KNOWN)

        async def reads_little() -> bool:
            return await buffers() <= alone + FEW_BUFFERS

        await eventually(reads_little)
        assert behind > alone + 10 * FEW_BUFFERS
    finally:
        await reader.close()
        await store.close()


async def _buffers_of_claim(reader: Connection, worker: WorkerId, store: PostgresJobStore) -> int:
    """Of a claim that takes one job, and is rolled back; it is made twice, since the first makes its plan."""
    buffers = 0
    for _ in range(2):
        transaction = reader.transaction()
        await transaction.start()
        await reader.execute("SELECT eventflow.schedule_job('Note', 1, '{}')")
        explained: str = await reader.fetchval(
            "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM eventflow.claim_jobs("
            "$1, NULL, ARRAY['Note'], '{1}', 10, 10, 300000, true, false, 0, 0, $2) WHERE id IS NOT NULL",
            worker.uuid,
            store._bounds.bounds_us,
        )
        await transaction.rollback()
        [answer] = json.loads(explained)
        assert answer["Plan"]["Actual Rows"] == 1
        buffers = answer["Plan"]["Shared Hit Blocks"] + answer["Plan"]["Shared Read Blocks"]
    return buffers


async def test_two_versions_of_an_application_do_not_put_jobs_aside_for_each_other_again_and_again(
    dsn: str, admin: Connection
) -> None:
    """Each knows jobs that the other does not; under load every job waits for its own, updated once at most."""
    past, present = Journal(), Journal()
    old, new = flow_of(past, Old), flow_of(present, New)
    settings = WorkerSettings(concurrency=2)
    async with old.open(dsn) as an_old, new.open(dsn) as a_new:

        async def schedule(times: int) -> None:
            for _ in range(times):
                await an_old.jobs.schedule_many([Old()] * 50)
                await a_new.jobs.schedule_many([New()] * 50)
                await a_new.jobs.schedule_many([Note()] * 50)

        async def all_ran() -> bool:
            return len(past.runs) + len(present.runs) == 150 * 80

        await schedule(40)
        async with an_old.worker(settings), a_new.worker(settings):
            await schedule(40)
            await eventually(all_ran, within=30.0)

    assert (past.labels().count("old"), past.labels().count("new")) == (50 * 80, 0)
    assert (present.labels().count("new"), present.labels().count("old")) == (50 * 80, 0)
    assert duplicates(past.ids() + present.ids()) == []
    put_aside, most = await updates(admin)
    assert put_aside > 1000, "hardly anybody put jobs aside: the test shows nothing"
    assert most == 1


@pytest.mark.parametrize("ahead", [0, 10])
async def test_job_that_somebody_has_locked_holds_up_no_other(
    dsn: str, admin_dsn: str, admin: Connection, ahead: int
) -> None:
    """Whoever cancels it, or looks at it by hand, may take a while: claims pass it by, and take it later."""
    driver = PostgresDriver(dsn, admin_dsn)
    due = after(timedelta(hours=1)) if ahead else Due()
    locked, other = await driver.insert(due=due), await driver.insert(due=due)
    worker = await driver.open_worker()
    try:
        async with admin.transaction():
            await admin.execute("SELECT FROM eventflow.job WHERE id = $1 FOR UPDATE", locked.uuid)
            with anyio.fail_after(4):
                assert await driver.claim_ids(worker, ahead=ahead, horizon=timedelta(hours=2)) == [other]

        assert await driver.claim_ids(worker, ahead=ahead, horizon=timedelta(hours=2)) == [locked]
    finally:
        await driver.close()
