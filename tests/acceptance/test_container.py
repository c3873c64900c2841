"""The main job on Postgres in a container; the container is restarted and paused under load."""

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from anyio.to_thread import run_sync
from testcontainers.community.postgres import PostgresContainer

from eventflow import App, CommitUnknownError, DatabaseUnavailableError, SystemClock
from eventflow.postgres import Connection
from eventflow.supervision import background_tasks
from tests.acceptance.shop import Record, flow
from tests.acceptance.workers import crew
from tests.support.containers import free_port, postgres_container, why_no_container
from tests.support.journal import query
from tests.support.postgres import PASSWORD
from tests.support.waiting import eventually

HEALED = timedelta(seconds=2)


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    """Docker, and the image. Where the run was asked to use them, doing without is a failure."""
    reason = why_no_container()
    if reason and os.environ.get("EVENTFLOW_TEST_POSTGRES") == "testcontainers":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture
def container() -> Generator[PostgresContainer]:
    """A server of this test's own, which keeps its address and what it has committed."""
    with postgres_container({}, port=free_port()) as started:
        yield started


@pytest.fixture
def admin_dsn(container: PostgresContainer) -> str:
    """A superuser's address of its database, which was migrated from the command line."""
    address = container.get_connection_url()
    migrate = [sys.executable, "-m", "eventflow", "migrate"]
    subprocess.run(migrate, check=True, env={**os.environ, "EVENTFLOW_DSN": address})
    return address


@pytest.fixture
async def dsn(admin_dsn: str) -> str:
    """A worker's address."""
    await query(admin_dsn, f"CREATE ROLE shop LOGIN PASSWORD '{PASSWORD}' IN ROLE eventflow_worker")
    _, at, place = admin_dsn.rpartition("@")
    return f"postgresql://shop:{PASSWORD}{at}{place}"


async def test_job_of_a_killed_worker_is_rescued(dsn: str, admin: Connection, tmp_path: Path) -> None:
    """The end of a process is seen across the container's network: another takes over within two seconds."""
    with crew(dsn, tmp_path) as workers:
        pair = {worker.pid: worker for worker in [await workers.add().started(), await workers.add().started()]}
        async with flow.open(dsn) as app:
            job_id = await app.commands.schedule(Record(number=1, milliseconds=2000))
            held_by = await eventually(lambda: admin.fetchval("SELECT pid FROM effect"))
            killed_at = await _now(dsn)
            pair.pop(held_by).kill()
            await eventually(lambda: _nothing_left(dsn))
            record = await app.jobs.get(job_id)

    first, again = await admin.fetch("SELECT pid, at FROM effect ORDER BY at")
    assert (first["pid"], [again["pid"]]) == (held_by, [*pair])
    assert again["at"] - killed_at < HEALED
    assert record is not None
    assert (record.attempt, record.claim_no, record.crashes) == (1, 2, 1)


async def restart(container: PostgresContainer) -> None:
    """All connections are lost."""
    await run_sync(container.get_wrapped_container().restart)


async def pause(container: PostgresContainer) -> None:
    """All connections stay open, and nobody answers."""
    paused = container.get_wrapped_container()
    await run_sync(paused.pause)
    await SystemClock().sleep(3)
    await run_sync(paused.unpause)


@pytest.mark.parametrize("outage", [restart, pause])
async def test_outage_under_load_heals_within_two_seconds(
    container: PostgresContainer,
    dsn: str,
    admin: Connection,
    tmp_path: Path,
    outage: Callable[[PostgresContainer], Awaitable[None]],
) -> None:
    """What waits goes on and what is new starts at once; all that was accepted runs, and nobody is taken for dead."""
    waiting = range(1000)
    with crew(dsn, tmp_path) as workers:
        await workers.add("--concurrency=20").started()
        await workers.add("--concurrency=20").started()
        async with flow.open(dsn) as app:
            await app.commands.schedule_many([Record(number=n, milliseconds=20) for n in waiting])
            async with background_tasks() as tasks:
                producer = Producer(app, first_number=len(waiting))
                tasks.start_soon(producer.run)
                await eventually(lambda: _ran(dsn, 100))

                await outage(container)
                [back_at] = await eventually(lambda: _now_if_there(dsn))
                new = producer.number
                went_on = await eventually(lambda: _effects(dsn, since=back_at))
                started = await eventually(lambda: _effects(dsn, since=back_at, of=new))
                tasks.cancel_scope.cancel()
            await eventually(lambda: _ran(dsn, len(waiting) + len(producer.accepted)), within=60)
            await eventually(lambda: _nothing_left(dsn))

    assert went_on[0] - back_at < HEALED
    assert started[0] - back_at < HEALED
    assert producer.accepted | {*waiting} <= {row["number"] for row in await query(dsn, "SELECT number FROM effect")}
    assert await query(dsn, "SELECT 1 FROM eventflow.dead_letter") == []
    assert await query(dsn, "SELECT 1 FROM eventflow.job_history WHERE crashes > 0") == []


class Producer:
    """
    Schedules one urgent job after the other, outage or not.

    Attributes:
        number: Of the job it is scheduling.
        accepted: Numbers of the jobs that are stored, by what it was told.
    """

    def __init__(self, app: App, *, first_number: int) -> None:
        self._app = app
        self.number = first_number
        self.accepted = set[int]()

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            with suppress(DatabaseUnavailableError, CommitUnknownError):
                await self._app.commands.schedule(Record(number=self.number), priority=0)
                self.accepted.add(self.number)
            self.number += 1
            await SystemClock().sleep(0.02)


async def _now(dsn: str) -> datetime:
    """The database's clock."""
    [row] = await query(dsn, "SELECT clock_timestamp() AS now")
    now: datetime = row["now"]
    return now


async def _now_if_there(dsn: str) -> list[datetime]:
    try:
        return [await _now(dsn)]
    except (OSError, asyncpg.PostgresError):
        return []


async def _effects(dsn: str, *, since: datetime, of: int = 0) -> list[datetime]:
    """When jobs with this number or a higher one have run, the first one first."""
    rows = await query(dsn, "SELECT at FROM effect WHERE at > $1 AND number >= $2 ORDER BY at", since, of)
    return [row["at"] for row in rows]


async def _ran(dsn: str, at_least: int) -> bool:
    [row] = await query(dsn, "SELECT count(DISTINCT number) AS jobs FROM effect")
    return row["jobs"] >= at_least


async def _nothing_left(dsn: str) -> bool:
    return not await query(dsn, "SELECT 1 FROM eventflow.job UNION ALL SELECT 1 FROM eventflow.running")
