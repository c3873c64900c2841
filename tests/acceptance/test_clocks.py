"""Clocks that are wrong, are set or stand still for a worker: no job is early, and nobody is taken for dead."""

from collections.abc import AsyncGenerator, Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import msgspec
import pytest

from eventflow import App, DatabaseUnavailableError, JobId, JobState
from eventflow.devdb import EmbeddedPostgres
from eventflow.postgres import Connection, migrate
from reliability.rig.clocks import SettableClock, skewed
from reliability.rig.transitions import Transitions
from tests.acceptance.shop import CREATE_EFFECTS, Block, Flaky, Later, Record, Thread, flow
from tests.acceptance.workers import Crew, crew
from tests.support.faketime import HOUR, needs_faketime, postgres_with_clock
from tests.support.waiting import eventually

SOON = timedelta(seconds=2)
"""A look at the store, which every worker makes once a second, and what follows from it."""
LEASE = ("--heartbeat-interval", "0.5", "--fence-after", "1.5", "--lease-duration", "2")


class Shop(msgspec.Struct):
    """A database whose clock can be set, with the tables of the shop."""

    server: EmbeddedPostgres
    clock: SettableClock
    dsn: str
    admin: Connection

    async def restart_with(self, seconds: float) -> None:
        """What a failover to a server with another clock looks like; the loop stands still meanwhile."""
        self.server.stop("fast")
        self.clock.set(seconds)
        self.server.start()
        self.admin = await asyncpg.connect(self.dsn)


@pytest.fixture
def clocked() -> Generator[tuple[EmbeddedPostgres, SettableClock]]:
    """A server of this test's own, and its clock."""
    with postgres_with_clock() as server_and_clock:
        yield server_and_clock


@pytest.fixture
async def shop(
    clocked: tuple[EmbeddedPostgres, SettableClock], monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Shop]:
    """The shop on that server."""
    server, clock = clocked
    monkeypatch.setenv("EVENTFLOW_DSN", server.dsn())
    opened = Shop(server, clock, server.dsn(), await asyncpg.connect(server.dsn()))
    await migrate(opened.admin)
    await opened.admin.execute(CREATE_EFFECTS)
    yield opened
    await opened.admin.close()


@needs_faketime
async def test_wall_clock_of_a_worker_decides_nothing(dsn: str, admin: Connection, tmp_path: Path) -> None:
    """One is an hour ahead, one an hour behind: no job is early or an hour late, nor what they schedule themselves."""
    with crew(dsn, tmp_path) as workers:
        for name, seconds in (("ahead", HOUR), ("behind", -HOUR)):
            worker = await workers.add("--queues", f"{name},default", environment=skewed(seconds)).started()
            shown = datetime.fromisoformat(worker.log.read_text().split()[0])
            assert abs(shown - datetime.now(UTC) - timedelta(seconds=seconds)) < timedelta(minutes=1)
        async with flow.open(dsn) as app:
            start = await _now(admin)
            for number, queue in enumerate(["ahead", "behind"] * 60):
                await app.commands.schedule(Record(number=number), delay=_ms(20 * number), queue=queue)
                at = start + _ms(500 + 20 * number)
                await app.commands.schedule(Record(number=1000 + number), at=at, queue=queue)
                if number % 10 < 2:
                    await app.jobs.schedule(Later(number=2000 + number, milliseconds=700), queue=queue)
                    await app.jobs.schedule(Flaky(number=3000 + number), queue=queue)
            await eventually(lambda: _nothing_left(admin))

    assert await _early(admin) == 0
    children = await admin.fetch("SELECT due_at - created_at AS delay FROM eventflow.any_job WHERE name = 'Child'")
    assert [child["delay"] for child in children] == [_ms(700)] * 24
    assert await admin.fetchval("SELECT count(*) FROM effect WHERE kind = 'flaky'") == 48
    _assert_nobody_was_taken_for_dead(workers)


@needs_faketime
async def test_database_clock_set_forward(shop: Shop, tmp_path: Path) -> None:
    """What has become due runs at once, what has not does not, and no lease is lost."""
    with crew(shop.dsn, tmp_path) as workers:
        await workers.add().started()
        await workers.add().started()
        async with flow.open(shop.dsn) as app:
            running = await app.commands.schedule(Record(number=0, milliseconds=4000))
            for number in range(1, 51):
                await app.commands.schedule(Record(number=number), delay=timedelta(minutes=number))
                await app.commands.schedule(Record(number=100 + number), delay=_ms(20 * number))
            beyond = await app.commands.schedule(Record(number=200), delay=timedelta(hours=1, minutes=1))
            await eventually(lambda: _ran(shop, 0))

            shop.clock.set(HOUR)
            stepped_at = await _now(shop.admin)
            await eventually(lambda: _ran(shop, *range(1, 51), *range(101, 151)))
            last = await shop.admin.fetchval("SELECT max(at) FROM effect WHERE number BETWEEN 1 AND 50")
            assert last - stepped_at < SOON
            # Two more looks of each worker, so that it would have been noticed if somebody were taken for dead.
            await app.commands.schedule(Record(number=300), delay=_ms(2500))
            await eventually(lambda: _ran(shop, 300))
            await eventually(lambda: _in_state(app, running, JobState.SUCCEEDED))
            await eventually(lambda: _in_state(app, beyond, JobState.WAITING))
    assert await _early(shop.admin) == 0
    await _assert_nothing_was_taken_from_anybody(shop.admin)
    _assert_nobody_was_taken_for_dead(workers)


@needs_faketime
async def test_database_clock_set_back(shop: Shop, tmp_path: Path) -> None:
    """
    What was not due waits for its time by the new clock, new jobs run at theirs, and no lease is lost.

    Between the step and a worker's next look at the store, a second at most, it fires what it holds by the old clock.
    """
    with crew(shop.dsn, tmp_path) as workers:
        await workers.add().started()
        await workers.add().started()
        async with flow.open(shop.dsn) as app:
            running = await app.commands.schedule(Record(number=0, milliseconds=4000))
            for number in range(1, 81):
                await app.commands.schedule(Record(number=number), delay=_ms(50 * number))
            await eventually(lambda: _ran(shop, 0, 1, 2))

            shop.clock.set(-HOUR)
            stepped_at = await _now(shop.admin)
            for number in range(101, 131):
                await app.commands.schedule(Record(number=number), delay=_ms(100 * (number - 101)))
            await eventually(lambda: _ran(shop, *range(101, 131)))
            await eventually(lambda: _in_state(app, running, JobState.SUCCEEDED))
            assert await _early(shop.admin, since=stepped_at + SOON) == 0
            late = await shop.admin.fetchval(
                "SELECT max(at - due_at) FROM effect JOIN eventflow.any_job ON (payload ->> 'number')::integer = number"
                " WHERE number > 100"
            )
            assert late < SOON
            assert not await _ran(shop, 80)

            shop.clock.set(0)
            restored_at = await _now(shop.admin)
            await eventually(lambda: _ran(shop, *range(1, 81)))
            assert await shop.admin.fetchval("SELECT max(at) FROM effect") - restored_at < SOON
            assert await _early(shop.admin, since=restored_at) == 0
            await eventually(lambda: _nothing_left(shop.admin))
    await _assert_nothing_was_taken_from_anybody(shop.admin)
    _assert_nobody_was_taken_for_dead(workers)


@needs_faketime
async def test_failover_to_servers_with_other_clocks(shop: Shop, tmp_path: Path) -> None:
    """To one that is an hour behind, and back: due times are those of the server there is, and no lease is lost."""
    with crew(shop.dsn, tmp_path) as workers:
        await workers.add().started()
        await workers.add().started()
        async with flow.open(shop.dsn) as app:
            for number in range(1, 61):
                await app.commands.schedule(Record(number=number), delay=_ms(50 * number))
            await eventually(lambda: _ran(shop, 1, 2))

            await shop.restart_with(-HOUR)
            restarted_at = await _now(shop.admin)
            await eventually(lambda: _scheduled(app, Record(number=100), delay_ms=2500))
            await eventually(lambda: _ran(shop, 100))
            assert await _early(shop.admin, since=restarted_at + SOON) == 0
            assert not await _ran(shop, 60)

            await shop.restart_with(0)
            await eventually(lambda: _ran(shop, *range(1, 61)))
            await eventually(lambda: _nothing_left(shop.admin))
    assert await shop.admin.fetchval("SELECT max(crashes) FROM eventflow.any_job") == 0
    _assert_nobody_was_taken_for_dead(workers)


async def test_jobs_longer_than_the_lease_run_once(
    dsn: str, admin: Connection, transitions: Transitions, tmp_path: Path
) -> None:
    """Three times as long, in the event loop and in a thread, with another worker looking on."""
    with crew(dsn, tmp_path) as workers:
        await workers.add(*LEASE).started()
        await workers.add(*LEASE).started()
        async with flow.open(dsn) as app:
            jobs = [
                await app.commands.schedule(Record(number=1, milliseconds=6000)),
                await app.jobs.schedule(Thread(number=2, seconds=6)),
            ]
            await eventually(lambda: _nothing_left(admin))
    assert [await transitions.states(job) for job in jobs] == [["waiting", "running", "succeeded"]] * 2
    _assert_nobody_was_taken_for_dead(workers)


async def test_handler_that_blocks_the_loop_is_not_taken_for_dead(
    dsn: str, admin: Connection, transitions: Transitions, tmp_path: Path
) -> None:
    """For twice its lease, with another worker looking on; what it held beside it runs afterwards, on time or later."""
    with crew(dsn, tmp_path) as workers:
        blocked = await workers.add(*LEASE, "--queues", "blocked").started()
        await workers.add(*LEASE, "--queues", "default").started()
        async with flow.open(dsn) as app:
            beside = await app.commands.schedule(Record(number=1, milliseconds=500), queue="blocked")
            await eventually(lambda: _count(admin, "SELECT count(*) FROM effect WHERE number = 1"))
            block = await app.jobs.schedule(Block(number=2, seconds=4), queue="blocked")
            await eventually(lambda: _nothing_left(admin))
            after = await app.commands.schedule(Record(number=3), queue="blocked")
            await eventually(lambda: _in_state(app, after, JobState.SUCCEEDED))
    for job in (beside, block, after):
        assert await transitions.states(job) == ["waiting", "running", "succeeded"]
    assert await _count(admin, "SELECT count(*) FROM eventflow.worker WHERE pid = $1", blocked.pid) == 1
    _assert_nobody_was_taken_for_dead(workers)


def _ms(milliseconds: int) -> timedelta:
    return timedelta(milliseconds=milliseconds)


async def _now(admin: Connection) -> datetime:
    now: datetime = await admin.fetchval("SELECT clock_timestamp()")
    return now


async def _count(admin: Connection, sql: str, *args: object) -> int:
    count: int = await admin.fetchval(sql, *args)
    return count


async def _early(admin: Connection, *, since: datetime | None = None) -> int:
    """How many handlers have started before the due time of their job, by the database's clock, without tolerance."""
    return await _count(
        admin,
        "SELECT count(*) FROM effect JOIN eventflow.any_job ON (payload ->> 'number')::integer = number"
        " WHERE at < due_at AND ($1::timestamptz IS NULL OR at >= $1)",
        since,
    )


async def _ran(shop: Shop, *numbers: int) -> bool:
    rows = await shop.admin.fetch("SELECT DISTINCT number FROM effect")
    return {row["number"] for row in rows} >= set(numbers)


async def _nothing_left(admin: Connection) -> bool:
    return not await _count(admin, "SELECT (SELECT count(*) FROM eventflow.job) + count(*) FROM eventflow.running")


async def _in_state(app: App, job_id: JobId, state: JobState) -> bool:
    record = await app.jobs.get(job_id)
    return record is not None and record.state is state


async def _scheduled(app: App, command: Record, *, delay_ms: int) -> bool:
    """Whether the application, whose connections broke, has scheduled it."""
    try:
        await app.commands.schedule(command, delay=_ms(delay_ms))
    except DatabaseUnavailableError:
        return False
    return True


async def _assert_nothing_was_taken_from_anybody(admin: Connection) -> None:
    disturbed = await admin.fetch("SELECT * FROM eventflow.any_job WHERE crashes > 0 OR claim_no > 1")
    assert disturbed == []
    assert await _count(admin, "SELECT count(*) FROM eventflow.worker") == 2


def _assert_nobody_was_taken_for_dead(workers: Crew) -> None:
    for worker in workers.workers:
        log = worker.log.read_text()
        assert "worker.rescued" not in log
        assert "worker.lease_lost" not in log
