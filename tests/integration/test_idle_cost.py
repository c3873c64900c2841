"""What a worker costs while there is nothing to do, and how many connections it takes while there is much."""

from collections.abc import AsyncGenerator
from datetime import timedelta

import asyncpg
import msgspec
import pytest

from eventflow import SystemClock, WorkerSettings
from eventflow.ids import WorkerId
from eventflow.postgres import Connection, PostgresJobStore, connector
from eventflow.postgres.statements import statement
from tests.support.job_stores import new_job, worker_record
from tests.support.journal import Hold, Journal, Note, ended, flow_of, query
from tests.support.postgres import PostgresServer
from tests.support.waiting import eventually

MEASURED_SECONDS = 5.0
PARK_UNKNOWN = """
    INSERT INTO eventflow.job (id, queue_id, due_at, ready_at, name, version, payload)
    SELECT gen_random_uuid(), 1, now() + interval '5 days', now() + interval '5 days', 'Unknown', 1, '{}'
    FROM generate_series(1, 20000)
"""


class Cost(msgspec.Struct, frozen=True):
    """What some seconds cost the database, for one second."""

    statements: float
    rows: float
    buffers: float


@pytest.fixture
async def meter(postgres: PostgresServer, admin_dsn: str) -> AsyncGenerator[Connection]:
    """A superuser's connection to a database that counts statements."""
    if "pg_stat_statements" not in postgres.libraries:
        pytest.skip("the server counts no statements: it was started without pg_stat_statements")
    connection = await asyncpg.connect(admin_dsn)
    await connection.execute("CREATE EXTENSION pg_stat_statements")
    yield connection
    await connection.close()


async def measure(meter: Connection, *, seconds: float = MEASURED_SECONDS) -> Cost:
    """
    What others than this connection's user do in some seconds.

    The one place where a test lets time pass: the rate is the subject.
    """
    totals = """
        SELECT coalesce(sum(calls), 0)::float AS statements, coalesce(sum(rows), 0)::float AS rows,
            coalesce(sum(shared_blks_hit + shared_blks_read), 0)::float AS buffers
        FROM pg_stat_statements WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND userid = 'test_worker'::regrole AND toplevel
    """
    clock = SystemClock()
    before, since = await meter.fetchrow(totals), clock.monotonic()
    await clock.sleep(seconds)
    after, elapsed = await meter.fetchrow(totals), clock.monotonic() - since
    assert before is not None
    assert after is not None
    return Cost(**{name: (after[name] - before[name]) / elapsed for name in ("statements", "rows", "buffers")})


async def test_idle_worker_sends_at_most_two_statements_a_second(dsn: str, meter: Connection, journal: Journal) -> None:
    """With 100,000 jobs parked for next week as with none, known or not, and these make no statement dearer."""
    async with flow_of(journal).open(dsn) as app, app.worker():
        await ended(app, await app.jobs.schedule(Note()))
        empty = await measure(meter)

        for _ in range(10):
            await app.jobs.schedule_many([Note()] * 10_000, delay=timedelta(days=7))
        await meter.execute(PARK_UNKNOWN)
        await ended(app, await app.jobs.schedule(Note()))
        full = await measure(meter)

    for cost in (empty, full):
        assert 0.5 < cost.statements <= 2.0  # it does look once a second
        assert cost.rows <= 4.0
    assert full.buffers <= empty.buffers + 100.0


async def test_connections_of_a_process_are_a_fixed_number(dsn: str, admin_dsn: str, journal: Journal) -> None:
    """Eight for a process that schedules and works, however many jobs wait, run and end at a time."""
    settings = WorkerSettings(concurrency=500)
    async with flow_of(journal).open(dsn) as app, app.worker(settings):
        await ended(app, await app.jobs.schedule(Note()))
        await app.jobs.schedule_many([Note()] * 500)  # more than a lone insert, which notifies by itself
        await journal.until_runs(501)

        async def sessions() -> int:
            [row] = await query(
                admin_dsn,
                "SELECT count(*) AS sessions FROM pg_stat_activity"
                " WHERE datname = current_database() AND usename = 'test_worker'",
            )
            count: int = row["sessions"]
            return count

        seen = {await sessions()}
        await app.jobs.schedule_many([Hold(label="held")] * 500)
        await journal.until_runs(1001)
        seen.add(await sessions())
        journal.gate.set()
        await app.jobs.schedule_many([Note()] * 3000)

        async def drained() -> bool:
            seen.add(await sessions())
            return len(journal.runs) >= 4001

        await eventually(drained, within=30.0)

    assert seen == {8}


async def test_claim_that_finds_nothing_writes_nothing(dsn: str, admin: Connection) -> None:
    """It takes no transaction number, so it waits for no flush; one that finds a job does."""
    worker = WorkerId.new()
    store = PostgresJobStore(connector(dsn, name="test"), "eventflow")
    await store.open_worker(worker_record(worker))
    claim = (worker.uuid, None, ["Send"], [1], 10, 10, 300_000, False, False, 0, 0, None)

    async def has_written() -> bool:
        async with admin.transaction():
            await admin.fetch(statement("claim_jobs"), *claim)
            return await admin.fetchval("SELECT pg_current_xact_id_if_assigned() IS NOT NULL") is True

    assert not await has_written()
    await store.insert([new_job()])
    assert await has_written()
    await store.close()
