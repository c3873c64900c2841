"""Postgres goes away and comes back; answers get lost: the worker survives, and nothing is lost or doubled."""

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg
import pytest

from eventflow import (
    App,
    CommitUnknownError,
    DatabaseUnavailableError,
    JobId,
    JobState,
    RetryPolicy,
    SystemClock,
    WorkerSettings,
)
from eventflow.devdb import EmbeddedPostgres, cached_template
from eventflow.ids import WorkerId
from eventflow.jobs import Interest, Outcome, Settlement
from eventflow.postgres import PostgresJobStore, connector, migrate
from eventflow.postgres.connection import Lane
from eventflow.postgres.notifier import Notifier
from eventflow.postgres.wakes import Wakes
from tests.support.job_stores import new_job, worker_record
from tests.support.journal import Hold, Journal, Note, count_jobs, ended, flow_of, query
from tests.support.waiting import eventually


@pytest.fixture
def server() -> Generator[EmbeddedPostgres]:
    """A server of this test's own, which keeps what it has committed."""
    with TemporaryDirectory(prefix="eventflow-outage-") as directory:
        Path(directory).chmod(0o755)
        with EmbeddedPostgres(Path(directory) / "postgres", template=cached_template()) as embedded:
            yield embedded


async def migrated(server: EmbeddedPostgres) -> str:
    """The address of a database with tables."""
    connection = await asyncpg.connect(server.dsn())
    try:
        await migrate(connection)
    finally:
        await connection.close()
    return server.dsn()


def restart(server: EmbeddedPostgres) -> None:
    """A crash, and recovery from it; the loop stands still, as a server belongs to the main thread."""
    server.stop("immediate")
    server.start()


async def all_ended(app: App, ids: Sequence[JobId]) -> None:
    """Wait until every one of these jobs has succeeded."""

    async def look() -> bool:
        try:
            done = await app.jobs.find(state=JobState.SUCCEEDED, limit=10_000)
        except DatabaseUnavailableError:
            return False
        return {record.id for record in done} >= set(ids)

    await eventually(look, within=30.0)


async def test_worker_survives_a_crash_of_the_server(server: EmbeddedPostgres, journal: Journal) -> None:
    """Immediate stop and start under load: it resumes within 2 s, and every job runs; what waited runs too."""
    dsn, clock = await migrated(server), SystemClock()
    async with flow_of(journal).open(dsn) as app, app.worker(WorkerSettings(concurrency=20)):
        ids = list(await app.jobs.schedule_many([Note(label="load")] * 3000))
        ids += await app.jobs.schedule_many([Note(label="later")] * 50, delay=timedelta(seconds=1))
        await journal.until_runs(200)

        restart(server)
        back_at, before = clock.monotonic(), len(journal.runs)
        await journal.until_runs(before + 1)
        resumed_after = clock.monotonic() - back_at
        await all_ended(app, ids)

        probe = await app.jobs.schedule(Note(label="probe"))
        assert (await ended(app, probe)).state is JobState.SUCCEEDED

    assert resumed_after < 2.0
    assert set(journal.ids()) >= set(ids)


async def test_running_handler_outlives_a_short_outage(server: EmbeddedPostgres, journal: Journal) -> None:
    """The server is back before the worker fences itself: the handler is not disturbed, and ends once."""
    dsn = await migrated(server)
    async with flow_of(journal).open(dsn) as app, app.worker():
        job_id = await app.jobs.schedule(Hold(label="held"))
        await journal.until_started("held")
        restart(server)
        journal.gate.set()
        await all_ended(app, [job_id])

    assert (journal.labels(), journal.cancelled) == (["held"], [])


async def test_worker_fences_itself_in_a_long_outage(server: EmbeddedPostgres, journal: Journal) -> None:
    """Without a successful beat for too long, it cancels its handlers; the job runs again when the server is back."""
    dsn = await migrated(server)
    settings = WorkerSettings(heartbeat_interval=0.1, fence_after=0.5, lease_duration=1.0)
    async with flow_of(journal).open(dsn) as app, app.worker(settings):
        job_id = await app.jobs.schedule(Hold(label="held"))
        await journal.until_started("held")
        server.stop("immediate")
        await eventually(lambda: cancelled(journal))
        with pytest.raises(DatabaseUnavailableError):
            await app.jobs.schedule(Note())
        server.start()
        journal.gate.set()
        await all_ended(app, [job_id])

    assert (journal.cancelled, journal.finished) == (["held"], ["held"])


async def cancelled(journal: Journal) -> bool:
    """Whether a handler was cancelled."""
    return bool(journal.cancelled)


async def test_lost_connections_are_replaced(dsn: str, admin_dsn: str, journal: Journal) -> None:
    """Somebody terminates every session of the process, again and again: all jobs run, exactly those."""
    async with flow_of(journal).open(dsn) as app, app.worker():
        ids = list(await app.jobs.schedule_many([Note()] * 500, retry=RetryPolicy(max_attempts=1)))
        for _ in range(5):
            await query(
                admin_dsn,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND usename = 'test_worker'",
            )
            ids += await schedule_until_accepted(app)
        await all_ended(app, ids)

    assert set(journal.ids()) == set(ids)
    assert await count_jobs(admin_dsn) == len(ids)


async def schedule_until_accepted(app: App) -> list[JobId]:
    """One more job, by a caller that goes by what the errors say was written."""

    async def attempt() -> list[JobId]:
        try:
            return [await app.jobs.schedule(Note())]
        except DatabaseUnavailableError:
            return []
        except CommitUnknownError as unknown:
            [job_id] = unknown.ids
            return [JobId(job_id)] if await app.jobs.get(JobId(job_id)) else []

    return await eventually(attempt)


class CutConnection(asyncpg.Connection):  # type: ignore[type-arg]
    """Breaks after the next insert or claim, before its answer arrives."""

    cut = False
    committed = True

    async def fetchval(self, query: str, *args: Any, **options: Any) -> Any:  # Any: the driver's signature
        return await self._answer(query, lambda: super(CutConnection, self).fetchval(query, *args, **options))

    async def fetch(self, query: str, *args: Any, **options: Any) -> Any:  # Any: the driver's signature
        return await self._answer(query, lambda: super(CutConnection, self).fetch(query, *args, **options))

    async def _answer(self, query: str, ask: Callable[[], Awaitable[Any]]) -> Any:
        is_insert = "eventflow.insert_" in query
        if not CutConnection.cut or not (is_insert or "eventflow.claim_jobs" in query):
            return await ask()
        CutConnection.cut = False
        if CutConnection.committed or not is_insert:
            await ask()
        self.terminate()
        raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")


@pytest.fixture(params=["wakes by itself", "others wake"])
async def store(request: pytest.FixtureRequest, dsn: str) -> AsyncGenerator[PostgresJobStore]:
    """It inserts in either of two ways: with what wakes the workers, or without."""
    connect = connector(dsn, name="test", connection_class=CutConnection)
    notifier = Notifier(Lane(connect, "eventflow"), "eventflow", SystemClock())
    store = PostgresJobStore(
        connect, "eventflow", wakes=Wakes(notifier if request.param == "wakes by itself" else None)
    )
    yield store
    await store.close()


async def test_insert_whose_answer_was_lost_is_looked_up(store: PostgresJobStore, admin_dsn: str) -> None:
    """It was committed: the caller is told nothing else, and the job exists once."""
    CutConnection.cut, CutConnection.committed = True, True
    await store.insert([new_job()])

    assert not CutConnection.cut
    assert await count_jobs(admin_dsn) == 1


async def test_insert_that_cannot_be_told_is_said_so(store: PostgresJobStore, admin_dsn: str) -> None:
    """It is not there: perhaps not yet. The error names the ids; nothing is inserted blindly a second time."""
    CutConnection.cut, CutConnection.committed = True, False
    jobs = [new_job(), new_job()]
    with pytest.raises(CommitUnknownError) as raised:
        await store.insert(jobs)

    assert list(raised.value.ids) == [job.id for job in jobs]
    assert await count_jobs(admin_dsn) == 0


async def test_claim_whose_answer_was_lost_is_adopted(dsn: str, journal: Journal) -> None:
    """The jobs were taken and nobody knows: the worker asks for them and runs them, long before any lease ends."""
    async with flow_of(journal).open(dsn, connection_class=CutConnection) as app:
        ids = await app.jobs.schedule_many([Note()] * 5)
        CutConnection.cut = True
        async with app.worker():
            records = [await ended(app, job_id, within=5.0) for job_id in ids]
        assert not CutConnection.cut

    assert [(record.claim_no, record.crashes) for record in records] == [(1, 0)] * 5


async def test_database_that_is_not_there(journal: Journal) -> None:
    """Opening says so, at once."""
    with pytest.raises(DatabaseUnavailableError):
        async with flow_of(journal).open(f"postgresql://nobody@/none?host=/nowhere/{os.getpid()}"):
            pass


class FailingConnection(asyncpg.Connection):  # type: ignore[type-arg]
    """Raises the error that a test sets, once."""

    error: BaseException | None = None

    async def fetch(self, query: str, *args: Any, **options: Any) -> Any:  # Any: the driver's signature
        self._fail()
        return await super().fetch(query, *args, **options)

    async def fetchrow(self, query: str, *args: Any, **options: Any) -> Any:  # Any: the driver's signature
        self._fail()
        return await super().fetchrow(query, *args, **options)

    async def fetchval(self, query: str, *args: Any, **options: Any) -> Any:  # Any: the driver's signature
        self._fail()
        return await super().fetchval(query, *args, **options)

    def _fail(self) -> None:
        error, FailingConnection.error = FailingConnection.error, None
        if error is not None:
            raise error


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.ConnectionDoesNotExistError("gone"),
        asyncpg.AdminShutdownError("shutting down"),
        asyncpg.CannotConnectNowError("starting up"),
        asyncpg.ReadOnlySQLTransactionError("a standby"),
        asyncpg.DeadlockDetectedError("deadlock"),
        asyncpg.TooManyConnectionsError("full"),
        asyncpg.InterfaceError("closed"),
        asyncpg.InternalClientError("odd state"),
        ConnectionResetError("reset"),
        TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_no_driver_error_passes_the_port(dsn: str, error: BaseException) -> None:
    """A database that is away is one error, whatever the driver calls it; the next call works again."""
    store = PostgresJobStore(connector(dsn, name="test", connection_class=FailingConnection), "eventflow")
    worker, wants = WorkerId.new(), Interest(None, ("Send",), (1,))
    await store.open_worker(worker_record(worker))
    await store.insert([new_job()])
    [claim] = (await store.claim(worker, wants, ready=1, ahead=0, horizon_us=0)).jobs
    settlement = Settlement(claim=claim, outcome=Outcome.RELEASED)
    try:
        for call in (
            lambda: store.beat(worker),
            lambda: store.tick(worker, wants),
            lambda: store.get(claim.id),
            lambda: store.settle(worker, [settlement]),
            lambda: store.claim(worker, wants, ready=0, ahead=0, horizon_us=0),
            lambda: store.close_worker(worker),
        ):
            FailingConnection.error = error
            with pytest.raises(DatabaseUnavailableError):
                await call()
            await call()
    finally:
        await store.close()
