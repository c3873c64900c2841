"""Workers behind pgbouncer: they notice that notifications cannot reach them, and work all the same."""

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import anyio
import asyncpg
import pytest

from eventflow import (
    App,
    CancelOutcome,
    DatabaseError,
    EventFlow,
    Job,
    JobContext,
    JobState,
    RescheduleOutcome,
    RetryPolicy,
    SystemClock,
    WorkerSettings,
)
from eventflow.postgres import Connection, Lane, connector
from reliability.rig.pooler import PgBouncer, pgbouncer
from reliability.rig.transitions import Transitions
from tests.support.journal import Hold, Journal, Note, ended, flow_of, in_state, query
from tests.support.pgbouncer import needs_pgbouncer
from tests.support.postgres import Database
from tests.support.waiting import eventually, until

pytestmark = needs_pgbouncer

ROOT = Path(__file__).parents[2]
POOL_SIZE = 3
LEASE_SECONDS = 2.0
SHORT_LEASE = WorkerSettings(heartbeat_interval=0.5, fence_after=1.5, lease_duration=LEASE_SECONDS)
QUICKLY = RetryPolicy(max_attempts=2, base=timedelta(milliseconds=10))

flow = EventFlow("pooled")  # of the worker processes


@flow.job
class Sleep(Job):
    """Takes its time."""

    seconds: float

    async def execute(self, context: JobContext) -> None:
        await SystemClock().sleep(self.seconds)


class Parent(Job):
    """Fails, then succeeds, and leads to another."""

    async def execute(self, context: JobContext) -> None:
        if context.attempt == 1:
            raise RuntimeError("the first attempt fails")
        context.schedule(Note(label="child"))


@pytest.fixture
def bouncer(database: Database) -> Generator[PgBouncer]:
    """A pgbouncer in transaction mode, with fewer sessions than a worker has connections."""
    with pgbouncer(database.worker, pool_size=POOL_SIZE) as running:
        yield running


@pytest.fixture
def pooled(bouncer: PgBouncer) -> str:
    """The address through it."""
    return bouncer.dsn


async def do_everything(app: App, journal: Journal) -> None:
    """One of each thing that an application does with jobs on connections of ours."""
    await app.jobs.schedule_many([Note(label="many")] * 400)
    parent = await app.jobs.schedule(Parent(), retry=QUICKLY)
    assert (await ended(app, parent)).attempt == 2
    unwanted = await app.jobs.schedule(Note(label="never"), delay=timedelta(hours=1))
    assert await app.jobs.cancel(unwanted) is CancelOutcome.CANCELLED
    sooner = await app.jobs.schedule(Note(label="sooner"), delay=timedelta(hours=1))
    assert await app.jobs.reschedule(sooner, delay=timedelta(milliseconds=50)) is RescheduleOutcome.RESCHEDULED
    held = await app.jobs.schedule(Hold(label="held"))
    await journal.until_started("held", "sooner", "in transaction", "child")
    assert await app.jobs.cancel(held) is CancelOutcome.REQUESTED
    await in_state(app, held, JobState.CANCELLED)
    await until(lambda: journal.labels().count("many") == 400)


async def test_worker_behind_pgbouncer_says_that_it_is_deaf_and_polls(
    pooled: str, dsn: str, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    """Without any setting. What another process schedules does not wait for the look that is due each second."""
    clock = SystemClock()
    async with flow_of(journal).open(pooled) as working, working.worker():
        await until(lambda: "listen.deaf" in caplog.messages)
        async with flow_of(journal).open(dsn) as elsewhere:
            began_at = clock.monotonic()
            for number in range(10):
                await elsewhere.jobs.schedule(Note(label=str(number)))
                await journal.until_started(str(number))
            took = clock.monotonic() - began_at

    assert took < 5.0
    assert caplog.messages.count("listen.deaf") == 1


async def test_worker_behind_pgbouncer_leaves_nothing_in_its_sessions(
    pooled: str, journal: Journal, transitions: Transitions
) -> None:
    """Everything works on shared sessions, and strangers find no lock, LISTEN, statement or setting of ours in them."""
    async with flow_of(journal, Parent).open(pooled) as app:
        # First: afterwards the driver resets the session it happens to get, and would hide what we leave behind.
        async with app.transaction() as connection:
            await app.jobs.schedule(Note(label="in transaction"), connection=connection, notify="in_transaction")
        async with app.worker():
            await do_everything(app, journal)
            found = [await look_around(session) for session in await all_sessions(pooled)]

    assert found == [[]] * POOL_SIZE
    assert {t.entered for t in await transitions.all()} <= {"waiting", "running", "succeeded", "cancelled"}


async def test_pooler_that_does_not_show_is_found_by_the_proof(
    pooled: str, admin_dsn: str, journal: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No notification arrives, so the worker polls, and neither takes a lock nor shows one to others."""

    async def looks_direct(connection: Connection) -> bool:
        return True

    monkeypatch.setattr("eventflow.postgres.listener.is_direct", looks_direct)
    monkeypatch.setattr("eventflow.postgres.listener.PROOF_SECONDS", 0.3)
    monkeypatch.setattr("eventflow.postgres.listener.PROOF_INTERVAL", 0.1)
    async with flow_of(journal).open(pooled) as app, app.worker(SHORT_LEASE):
        await until(lambda: "listen.deaf" in caplog.messages)
        [shown] = await query(admin_dsn, "SELECT session_key, beat FROM eventflow.worker")
        found = [await look_around(session) for session in await all_sessions(pooled)]

    assert shown["session_key"] is None
    assert "lock" not in {left for session in found for left in session}


async def all_sessions(pooled: str) -> list[Connection]:
    """Connections that hold all sessions of the pooler at the same time, each in a transaction."""
    connections: list[Connection] = []
    for _ in range(POOL_SIZE):
        connection: Connection = await asyncpg.connect(pooled, statement_cache_size=0)
        await connection.execute("BEGIN")
        connections.append(connection)
    return connections


async def look_around(session: Connection) -> list[str]:
    """What somebody left in a session of the pooler; gives it back."""
    rows = await session.fetch("""
        SELECT 'lock' AS left_behind FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'
        UNION ALL SELECT channel FROM pg_listening_channels() AS channel
        UNION ALL SELECT statement FROM pg_prepared_statements WHERE name <> ''
        UNION ALL SELECT name FROM pg_settings WHERE source = 'session' AND setting <> reset_val
            AND name NOT IN ('application_name', 'client_encoding')  -- which pgbouncer sets for each client
    """)
    await session.close()
    return [str(row["left_behind"]) for row in rows]


async def test_connections_made_at_the_same_time_all_know_of_the_pooler(pooled: str) -> None:
    """Whichever finds it first: none prepares a statement in one session to run it in another, or leaves jit off."""
    connect = connector(pooled, name="test")
    connections: list[Connection] = []

    async def use() -> None:
        connection = await connect()
        connections.append(connection)
        for _ in range(20):
            assert await connection.fetchval("SELECT $1::integer[]", [1]) == [1]

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(use)
    for connection in connections:
        await connection.close()
    assert [await look_around(session) for session in await all_sessions(pooled)] == [[]] * POOL_SIZE


async def test_prepared_statements_that_a_pooler_loses_are_explained(bouncer: PgBouncer) -> None:
    """Who asks for them where the pooler does not keep track of them is told which setting is wrong."""
    lane = Lane(connector(bouncer.dsn, name="test", statement_cache_size=10), "eventflow")
    await lane.fetch("SELECT 1")
    others = [await asyncpg.connect(bouncer.dsn, statement_cache_size=0) for _ in range(POOL_SIZE - 1)]
    for other in others:  # the last used session is lent first
        await other.execute("BEGIN")
    with pytest.raises(DatabaseError, match="statement_cache_size must be 0 or left out"):
        await lane.fetch("SELECT 1")
    for other in others:
        await other.close()
    await lane.close()


async def test_listen_dsn_beside_a_pooler_gives_full_speed(
    pooled: str, dsn: str, admin_dsn: str, journal: Journal, only_when_woken: WorkerSettings
) -> None:
    """Only LISTEN goes past the pooler: notifications wake the worker, and its session is shown to others."""
    async with flow_of(journal).open(pooled, listen_dsn=dsn) as working, working.worker(only_when_woken):
        session = await eventually(lambda: shown_session(admin_dsn))
        async with flow_of(journal).open(dsn) as elsewhere:
            await elsewhere.jobs.schedule(Note(label="announced"))
            await journal.until_started("announced")

    assert session.startswith("eventflow listen")


async def shown_session(admin_dsn: str) -> str:
    """The name of the session whose lock the one worker shows, or nothing."""
    rows = await query(
        admin_dsn,
        "SELECT application_name FROM pg_stat_activity JOIN pg_locks USING (pid) JOIN eventflow.worker"
        " ON locktype = 'advisory' AND session_key = (classid::bigint << 32) | objid::bigint",
    )
    return str(rows[0]["application_name"]) if rows else ""


async def test_pgbouncer_in_session_mode_lets_notifications_through(
    database: Database, admin_dsn: str, journal: Journal, only_when_woken: WorkerSettings
) -> None:
    """There a session is the client's own: LISTEN proves itself, and its lock is gone when the client is."""
    with pgbouncer(database.worker, pool_mode="session", pool_size=20) as bouncer:
        async with flow_of(journal).open(bouncer.dsn) as working, working.worker(only_when_woken):
            await eventually(lambda: shown_session(admin_dsn))
            async with flow_of(journal).open(bouncer.dsn) as elsewhere:
                await elsewhere.jobs.schedule(Note(label="announced"))
                await journal.until_started("announced")
        locks = "SELECT pid FROM pg_locks JOIN pg_stat_activity USING (pid)"
        locks += " WHERE locktype = 'advisory' AND datname = current_database()"

        async def gone() -> bool:
            return await query(admin_dsn, locks) == []

        await eventually(gone)


async def test_worker_survives_a_restart_of_pgbouncer(
    bouncer: PgBouncer, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    """All connections end at once: the running job goes on, others run within 2 s, and nobody is taken for dead."""
    clock = SystemClock()
    async with (
        flow_of(journal).open(bouncer.dsn) as app,
        app.worker(),
        flow_of(Journal()).open(bouncer.dsn) as other,
        other.worker(WorkerSettings(queues=("none of these",))),
    ):
        held = await app.jobs.schedule(Hold(label="held"))
        await journal.until_started("held")
        bouncer.stop()
        await until(lambda: "service.failed" in caplog.messages)
        bouncer.start()
        back_at = clock.monotonic()

        async def scheduled() -> bool:
            try:
                await app.jobs.schedule(Note(label="probe"))
            except DatabaseError:
                return False
            return True

        await eventually(scheduled)
        await journal.until_started("probe")
        resumed_after = clock.monotonic() - back_at
        journal.gate.set()
        record = await ended(app, held)

    assert resumed_after < 2.0
    assert (record.state, record.claim_no, record.crashes) == (JobState.SUCCEEDED, 1, 0)
    assert "worker.rescued" not in caplog.messages


@contextmanager
def worker_process(dsn: str, log: Path) -> Generator[subprocess.Popen[bytes]]:
    """``eventflow worker`` with a short lease; killed at the end."""
    command = [sys.executable, "-m", "eventflow", "worker", f"{__name__}:flow", "--concurrency=1"]
    command += [f"--lease-duration={LEASE_SECONDS}", "--fence-after=1.5", "--heartbeat-interval=0.5"]
    with log.open("wb") as stream:
        environment = {**os.environ, "EVENTFLOW_DSN": dsn}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=stream)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def test_job_of_a_killed_worker_behind_pgbouncer_starts_again_within_the_lease(
    pooled: str, admin_dsn: str, transitions: Transitions, tmp_path: Path
) -> None:
    """SIGKILL takes one lease to be noticed there; who is alive is not taken for dead however long its jobs run."""
    with worker_process(pooled, tmp_path / "victim.log") as victim:
        async with flow.open(pooled) as app:
            first = await app.jobs.schedule(Sleep(seconds=60))
            await in_state(app, first, JobState.RUNNING)
            async with app.worker(SHORT_LEASE):
                second = await app.jobs.schedule(Sleep(seconds=60))
                await in_state(app, second, JobState.RUNNING)
                await eventually(lambda: all_have_beaten(admin_dsn, times=int(2 * LEASE_SECONDS / 0.5)))
                assert [t.entered for t in await transitions.all()].count("running") == 2

                victim.kill()
                [row] = await query(admin_dsn, "SELECT clock_timestamp() AS at")
                await eventually(lambda: claimed_again(transitions))
                for job_id in (first, second):
                    await app.jobs.cancel(job_id)

    again = (await transitions.of(first))[3]
    assert [t.entered for t in await transitions.of(first)][:4] == ["waiting", "running", "waiting", "running"]
    assert timedelta(0) < again.at - row["at"] < timedelta(seconds=LEASE_SECONDS + 1.5)
    assert [t.entered for t in await transitions.of(second)] == ["waiting", "running", "cancelled"]


async def all_have_beaten(admin_dsn: str, *, times: int) -> bool:
    """Whether each of two workers has shown so often that it is alive."""
    rows = await query(admin_dsn, "SELECT beat, session_key FROM eventflow.worker WHERE closed_at IS NULL")
    assert all(row["session_key"] is None for row in rows)
    return len(rows) == 2 and all(row["beat"] >= times for row in rows)


async def claimed_again(transitions: Transitions) -> bool:
    """Whether a job was claimed for the second time."""
    return any(t.claim_no == 2 and t.entered == "running" for t in await transitions.all())
