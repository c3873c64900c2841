"""What the hot statements read does not depend on how full the tables are, or were when they were planned."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from eventflow import WorkerId
from eventflow.jobs import Outcome, Settlement
from eventflow.postgres import Connection, PostgresJobStore, connector
from eventflow.postgres.statements import statement
from tests.support.job_stores import interest
from tests.support.waiting import eventually

MILLION = 1_000_000
BATCH = 100
COLD = 40
"""Pages beyond those of the rows: catalogs, index roots, what a first call in a session looks up."""
PAGES_PER_JOB = 30
"""Pages that the end or the claim of one job touches, in all tables and indexes: a level of each index or two."""

FILL_JOBS = """
    INSERT INTO eventflow.job (id, queue_id, due_at, ready_at, name, version, payload)
    SELECT gen_random_uuid(), 1, at, at, 'Send', 1, '{}'
    FROM generate_series(1, $1) AS n,
        LATERAL (SELECT clock_timestamp() - interval '1 hour' + n * interval '1 ms') AS t (at)
"""
FILL_READY = """
    INSERT INTO eventflow.job (id, queue_id, due_at, ready_at, name, version, payload)
    SELECT gen_random_uuid(), 1, at, at, 'Send', 1, '{}' FROM generate_series(1, $1), clock_timestamp() AS at
"""
FILL_SCATTERED = """
    INSERT INTO eventflow.job (id, queue_id, due_at, ready_at, name, version, payload)
    SELECT gen_random_uuid(), 1, at, at, 'Send', 1, '{}'
    FROM generate_series(1, $1), LATERAL (SELECT clock_timestamp() - random() * interval '1 hour') AS t (at)
"""
FILL_RUNNING = """
    INSERT INTO eventflow.running (id, worker_id, claimed_at, queue_id, lane, priority, due_at, ready_at, created_at,
        name, version, payload, attempt, crashes, claim_no)
    SELECT gen_random_uuid(), $2, now(), 1, 0, 1, now(), now(), now(), 'Send', 1, '{}', 1, 0, 1
    FROM generate_series(1, $1)
"""


class Statements:
    """The hot statements in one session of a worker, with the pages that each call of one reads."""

    def __init__(self, connection: Connection, worker: WorkerId) -> None:
        self._connection = connection
        self._worker = worker.uuid
        self.bounds_us: list[int] = []

    async def claim(self) -> int:
        """Claim a batch."""
        return await self._pages(
            "claim_jobs",
            *(self._worker, None, ["Send"], [1], BATCH, BATCH, 300_000, False, False, 0, 0, self.bounds_us),
        )

    async def tick(self) -> int:
        """Look."""
        return await self._pages("tick_worker", self._worker, None, ["Send"], [1], 0, self.bounds_us)

    async def complete(self) -> int:
        """End a batch of claims in success."""
        ids, nos = await self._held()
        return await self._pages(
            "complete_jobs", self._worker, ids, nos, ["succeeded"] * len(ids), nos, nos, [None] * len(ids)
        )

    async def give_back(self) -> int:
        """Let a batch of claims wait again."""
        ids, nos = await self._held()
        nones = [None] * len(ids)
        return await self._pages("return_jobs", self._worker, ids, nos, nones, nones, nos, nones, nones)

    async def bury(self) -> int:
        """Make a batch of claims dead letters."""
        ids, nos = await self._held()
        return await self._pages(
            "bury_jobs", self._worker, ids, nos, ["error"] * len(ids), nos, ['{"type": ""}'] * len(ids)
        )

    async def rescue(self, worker: WorkerId) -> int:
        """Let all jobs of a dead worker wait again."""
        return await self._pages("release_claims", worker.uuid, True)

    async def _held(self) -> tuple[list[Any], list[int]]:
        rows = await self._connection.fetch(
            "SELECT id, claim_no FROM eventflow.running WHERE worker_id = $1 LIMIT $2", self._worker, BATCH
        )
        return [row["id"] for row in rows], [row["claim_no"] for row in rows]

    async def _pages(self, name: str, *arguments: Any) -> int:
        """Call it, and count the pages read, wherever they were found; inner statements are included."""
        explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement(name)}"
        [plan] = json.loads(await self._connection.fetchval(explain, *arguments))
        return plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]


async def open_worker(admin: Connection) -> WorkerId:
    worker = WorkerId.new()
    await admin.execute(
        "INSERT INTO eventflow.worker (id, host, pid, version, concurrency) VALUES ($1, 'host', 1, '1.0', 1)",
        worker.uuid,
    )
    return worker


@asynccontextmanager
async def worker_session(dsn: str, admin: Connection) -> AsyncGenerator[Statements]:
    """A worker's session. Its plans are made by a first call of each statement."""
    connection = await asyncpg.connect(dsn, command_timeout=100)
    try:
        yield Statements(connection, await open_worker(admin))
    finally:
        await connection.close()


@pytest.fixture
async def statements(dsn: str, admin: Connection) -> AsyncGenerator[Statements]:
    """One that begins with the test."""
    async with worker_session(dsn, admin) as session:
        yield session


async def call_each(statements: Statements, dead: WorkerId) -> dict[str, int]:
    """Call every hot statement; the pages of each."""
    pages = {"tick": await statements.tick(), "claim": await statements.claim()}
    pages["complete"] = await statements.complete()
    for end in (statements.give_back, statements.bury):
        await statements.claim()
        pages[end.__name__] = await end()
    pages["rescue"] = await statements.rescue(dead)
    return pages


def excess(pages: dict[str, int]) -> dict[str, int]:
    """The statements that read more than their own jobs need."""
    allowed = dict.fromkeys(pages, COLD + BATCH * PAGES_PER_JOB) | {"tick": COLD + 2 * BATCH}
    return {name: read for name, read in pages.items() if read > allowed[name]}


async def test_plans_hold_however_full_the_tables_become(admin: Connection, dsn: str, statements: Statements) -> None:
    """A session that begins when there is no work, and one that begins at a million jobs; statistics never help."""
    dead, other = await open_worker(admin), await open_worker(admin)
    for table in ("job", "running"):
        await admin.execute(f"ALTER TABLE eventflow.{table} SET (autovacuum_enabled = off)")
    await admin.execute("VACUUM ANALYZE eventflow.job, eventflow.running, eventflow.job_history, eventflow.dead_letter")
    await call_each(statements, dead)

    await admin.execute(FILL_JOBS, MILLION)
    await admin.execute(FILL_RUNNING, MILLION, other.uuid)
    await admin.execute(FILL_RUNNING, BATCH, dead.uuid)
    assert excess(await call_each(statements, dead)) == {}

    await admin.execute("ANALYZE eventflow.job, eventflow.running")
    async with worker_session(dsn, admin) as late:
        await call_each(late, dead)
        await admin.execute("TRUNCATE eventflow.job, eventflow.running")
        await admin.execute(FILL_JOBS, 3 * BATCH)
        await admin.execute(FILL_RUNNING, BATCH, dead.uuid)
        assert excess(await call_each(late, dead)) == {}


async def test_what_cannot_be_vacuumed_is_not_walked_over(admin: Connection, dsn: str, statements: Statements) -> None:
    """Under a snapshot that somebody holds, tens of thousands of jobs come and go, and no statement reads more."""
    reader: Connection = await asyncpg.connect(dsn)
    try:
        await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await reader.fetch("SELECT count(*) FROM eventflow.job")
        await _pages_after(200, dsn, admin, statements)
        few = await _pages_after(200, dsn, admin, statements)
        many = await _pages_after(20_000, dsn, admin, statements)

        assert {name: read for name, read in many.items() if read > few[name] + 10 * COLD} == {}
        statements.bounds_us = []
        assert await statements.tick() > 1_000 * COLD, "there was nothing to walk over: the test shows nothing"
    finally:
        await reader.close()


async def _pages_after(jobs: int, dsn: str, admin: Connection, statements: Statements) -> dict[str, int]:
    """What each statement reads, after so many jobs came and went."""
    worker, dead, wants = await open_worker(admin), await open_worker(admin), interest(names=("Send",))
    store = PostgresJobStore(connector(dsn, name="churn"), "eventflow")
    try:
        await admin.execute(FILL_SCATTERED, jobs)
        left = jobs
        while claims := (await store.claim(worker, wants, ready=1_000, ahead=0, horizon_us=0)).jobs:
            await store.settle(worker, [Settlement(claim=claim, outcome=Outcome.SUCCEEDED) for claim in claims])
            left -= len(claims)
        assert left == 0
        emptied_us = (await store.tick(worker, wants)).now_us

        async def bound_has_followed() -> bool:
            await store.tick(worker, wants)
            return max(store._bounds.bounds_us, default=0) >= emptied_us

        await eventually(bound_has_followed, every=0.05)
        statements.bounds_us = store._bounds.bounds_us
    finally:
        await store.close()
    await admin.execute(FILL_READY, 4 * BATCH)
    await admin.execute(FILL_RUNNING, BATCH, dead.uuid)
    pages = await call_each(statements, dead)
    await admin.execute("DELETE FROM eventflow.job")
    return pages
