"""No job is early, whatever happens to the loop, the connections and the database's clock."""

import time
from collections.abc import AsyncGenerator, Generator, Iterable
from datetime import datetime, timedelta

import anyio
import anyio.lowlevel
import asyncpg
import msgspec
import pytest

from eventflow import App, WorkerSettings
from eventflow.devdb import EmbeddedPostgres
from eventflow.postgres import Connection, migrate
from reliability.rig.clocks import SettableClock
from tests.support.faketime import HOUR, needs_faketime, postgres_with_clock
from tests.support.journal import Journal, Note, Run, duplicates, flow_of
from tests.support.waiting import eventually

FAR_AHEAD = WorkerSettings(claim_ahead=60.0)
"""Takes jobs into memory up to a minute before they are due, when it claims."""
ONE_HOUR = timedelta(seconds=HOUR)


class ClockedDatabase(msgspec.Struct):
    """A database of this test's own, whose clock can be set."""

    dsn: str
    clock: SettableClock
    admin: Connection


@pytest.fixture
def clocked_server() -> Generator[tuple[EmbeddedPostgres, SettableClock]]:
    """The server of it."""
    with postgres_with_clock() as server_and_clock:
        yield server_and_clock


@pytest.fixture
async def clocked(clocked_server: tuple[EmbeddedPostgres, SettableClock]) -> AsyncGenerator[ClockedDatabase]:
    """A migrated database on a server whose clock can be set."""
    server, clock = clocked_server
    admin = await asyncpg.connect(server.dsn())
    await migrate(admin)
    yield ClockedDatabase(server.dsn(), clock, admin)
    await admin.close()


@needs_faketime
async def test_jobs_in_memory_wait_for_a_clock_that_was_set_back(clocked: ClockedDatabase) -> None:
    """Claimed long ahead: from the database's next answer on they go by the clock it has now, back and forward."""
    journal = Journal(clock_dsn=clocked.dsn)
    async with flow_of(journal).open(clocked.dsn) as app, app.worker(FAR_AHEAD):
        last = await in_memory(app, journal, clocked.admin, count=20, first=3.0)

        clocked.clock.set(-HOUR)
        await app.jobs.schedule(Note(label="by the new clock"))
        await app.jobs.schedule(Note(label="after their old time"), at=last - ONE_HOUR + timedelta(seconds=0.3))
        await journal.until_started("after their old time")
        assert journal.labels() == ["claims", "by the new clock", "after their old time"]

        clocked.clock.set(0)
        await journal.until_runs(23)
    assert early(journal.runs) == []
    assert duplicates(journal.ids()) == []


@needs_faketime
async def test_slow_reconnect_does_not_hide_that_a_clock_is_behind(clocked: ClockedDatabase) -> None:
    """
    Connecting to the new server takes longer than its clock is behind, so what it shows is what was to be expected.

    Jobs in memory go by it all the same, from its first answer on.
    """
    journal = Journal(clock_dsn=clocked.dsn)
    async with flow_of(journal).open(clocked.dsn) as app, app.worker(FAR_AHEAD):
        await in_memory(app, journal, clocked.admin, count=150, first=0.5)

        await clocked.admin.execute("ALTER SYSTEM SET post_auth_delay = 1")
        await clocked.admin.execute("SELECT pg_reload_conf()")
        clocked.clock.set(-0.8)
        await cut_connections(clocked.admin)
        await eventually(lambda: has_asked_again(clocked.admin))
        await eventually(lambda: has_asked_again(clocked.admin))  # by the answer to this, it has read that one
        answered_at: datetime = await clocked.admin.fetchval("SELECT clock_timestamp()")
        await journal.until_runs(151)
    later = [run for run in journal.runs if database_time(run) > answered_at]
    assert len(later) > 20, "the answer came too late to show anything"
    assert early(later) == []


async def test_answer_that_a_blocked_loop_read_late_makes_nothing_early(dsn: str, admin_dsn: str) -> None:
    """The loop stands still for a second, and with it the time that was on its way: jobs in memory wait for theirs."""
    journal = Journal(clock_dsn=dsn)
    admin = await asyncpg.connect(admin_dsn)
    async with flow_of(journal).open(dsn) as app, app.worker(FAR_AHEAD) as worker, anyio.create_task_group() as group:
        await in_memory(app, journal, admin, count=60, first=0.5)

        await admin.execute("BEGIN; LOCK TABLE eventflow.job")
        worker.wake()
        await eventually(lambda: somebody_waits(admin))
        group.start_soon(admin.execute, "COMMIT")
        await anyio.lowlevel.checkpoint()  # now it is sent, and the claim answered as soon as it is done
        time.sleep(1)  # noqa: TID251 - what a handler should not do

        await journal.until_runs(61)
    await admin.close()
    assert early(journal.runs) == []
    assert duplicates(journal.ids()) == []


async def test_lost_connections_make_nothing_early(dsn: str, admin_dsn: str) -> None:
    """All of the worker's are cut again and again while jobs come due: each runs once, and not before its time."""
    journal = Journal(clock_dsn=admin_dsn)
    admin = await asyncpg.connect(admin_dsn)
    async with flow_of(journal).open(dsn) as app, app.worker(FAR_AHEAD):
        await in_memory(app, journal, admin, count=30, first=0.5)
        for number in range(30):
            await app.jobs.schedule(Note(), delay=timedelta(milliseconds=70 * number))
        for runs in (5, 15, 25, 35, 45):
            await journal.until_runs(runs)
            await cut_connections(admin)
        await journal.until_runs(61)
    await admin.close()
    assert early(journal.runs) == []
    assert duplicates(journal.ids()) == []


async def in_memory(app: App, journal: Journal, admin: Connection, *, count: int, first: float) -> datetime:
    """
    Let the worker claim jobs that are due from *first* seconds on, one every 50 ms; returns when the last is.

    Another runs at once: the claim that takes it takes them along.
    """
    start: datetime = await admin.fetchval("SELECT clock_timestamp()") + timedelta(seconds=first)
    due = [start + timedelta(milliseconds=50 * number) for number in range(count)]
    for at in due:
        await app.jobs.schedule(Note(), at=at)
    await app.jobs.schedule(Note(label="claims"))
    await eventually(lambda: has_claimed_all(admin))
    await journal.until_started("claims")
    return due[-1]


async def has_claimed_all(admin: Connection) -> bool:
    """Whether no job waits in the database."""
    waiting: int = await admin.fetchval("SELECT count(*) FROM eventflow.job")
    return waiting == 0


async def somebody_waits(admin: Connection) -> bool:
    """Whether a statement waits for a lock."""
    waits: bool = await admin.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
    return waits


async def has_asked_again(admin: Connection) -> bool:
    """Whether a session that is not cut has been asked about jobs, and has answered."""
    asked: bool = await admin.fetchval(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle'"
        " AND application_name LIKE 'eventflow %' AND query ~ 'eventflow.(tick_worker|claim_jobs)')"
    )
    return asked


async def cut_connections(admin: Connection) -> None:
    """Terminate every session of applications and workers, and wait until they are gone."""
    await admin.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'eventflow %'"
    )


def database_time(run: Run) -> datetime:
    """What the database's clock showed to the handler."""
    assert run.database_time is not None
    return run.database_time


def early(runs: Iterable[Run]) -> list[Run]:
    """Those that started before their due time by the database's clock, with no tolerance."""
    return [run for run in runs if database_time(run) < run.due_at]
