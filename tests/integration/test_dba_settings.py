"""What a DBA may set for the worker's role or leave no room for: told apart from failing jobs, logged once, healed."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import asyncpg
import pytest

from eventflow import (
    App,
    CommandContext,
    DatabaseUnavailableError,
    EventFlow,
    JobState,
    StandaloneCommand,
    SystemClock,
    WorkerSettings,
)
from eventflow.devdb import EmbeddedPostgres, cached_template
from eventflow.postgres import Connection, migrate
from eventflow.postgres.translation import may_have_committed
from tests.support.journal import Hold, Journal, Note, ended, flow_of, query
from tests.support.postgres import PASSWORD, Database
from tests.support.waiting import eventually, until

ROOT = Path(__file__).parents[2]
CLOCK = SystemClock()
MOST_CONNECTIONS = 10

flow = EventFlow("crowded")  # of a worker process


class Look(StandaloneCommand):
    """At the transaction of its handler."""


class Login:
    """
    A worker's login of this test's own, for which a DBA sets what comes to mind.

    Attributes:
        dsn: How it connects.
        admin_dsn: How the DBA does.
    """

    def __init__(self, database: Database) -> None:
        self.admin_dsn = database.admin
        self._name = f"dba_{database.name}"
        self.dsn = database.worker.replace("test_worker", self._name)

    async def create(self) -> None:
        await self.command(f"CREATE ROLE {self._name} LOGIN PASSWORD '{PASSWORD}' IN ROLE eventflow_worker")

    async def drop(self) -> None:
        await self.disconnect()
        await self.command(f"DROP ROLE {self._name}")

    async def alter(self, setting: str, value: str) -> None:
        """For its sessions from now on; skips the test if the server does not know the setting."""
        if not await query(self.admin_dsn, "SELECT FROM pg_settings WHERE name = $1", setting):
            pytest.skip(f"this Postgres has no {setting}")
        await self.command(f"ALTER ROLE {self._name} SET {setting} = '{value}'")

    async def reset(self) -> None:
        """Nothing is set any more, for its sessions from now on."""
        await self.command(f"ALTER ROLE {self._name} RESET ALL")

    async def limit(self, connections: int) -> None:
        """How many sessions it may have; -1: any number."""
        await self.command(f"ALTER ROLE {self._name} CONNECTION LIMIT {connections}")

    async def disconnect(self) -> None:
        """End its sessions."""
        await query(
            self.admin_dsn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", self._name
        )

    async def sessions(self, application_name: str = "%") -> set[int]:
        """The process ids of its sessions, or of some."""
        rows = await query(
            self.admin_dsn,
            "SELECT pid FROM pg_stat_activity WHERE usename = $1 AND application_name LIKE $2",
            self._name,
            application_name,
        )
        return {row["pid"] for row in rows}

    async def has_no(self, application_name: str = "%") -> bool:
        """Whether none of them is left."""
        return not await self.sessions(application_name)

    async def command(self, sql: str) -> None:
        """Run a statement as superuser."""
        await query(self.admin_dsn, sql)


@pytest.fixture
async def login(database: Database) -> AsyncGenerator[Login]:
    """A worker's login of this test's own."""
    made = Login(database)
    await made.create()
    yield made
    await made.drop()


class Failures:
    """The services that failed, as they were logged."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def count(self) -> Counter[str]:
        """How often each was said to have failed."""
        records: list[Any] = [r for r in self._caplog.records if r.message == "service.failed"]  # Any: values in extra
        return Counter(record.service for record in records)

    async def until_seen(self, *services: str) -> None:
        """Wait until these have failed."""
        await until(lambda: set(services) <= self.count().keys())


@pytest.fixture
def failures(caplog: pytest.LogCaptureFixture) -> Failures:
    """The services that failed."""
    return Failures(caplog)


@asynccontextmanager
async def locked(admin_dsn: str, *tables: str) -> AsyncGenerator[None]:
    """Nobody else can use these tables meanwhile."""
    connection: Connection = await asyncpg.connect(admin_dsn)
    try:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


async def scheduled_when_possible(app: App, label: str) -> None:
    """Schedule a note as soon as the database takes it."""

    async def attempt() -> bool:
        try:
            await app.jobs.schedule(Note(label=label))
        except DatabaseUnavailableError:
            return False
        return True

    await eventually(attempt)


@pytest.mark.parametrize("setting", ["statement_timeout", "lock_timeout", "transaction_timeout"])
async def test_short_timeouts_are_no_jobs_failure(
    setting: str, login: Login, journal: Journal, failures: Failures
) -> None:
    """The tables are locked for longer: callers are told, the worker says so once and goes on, no attempt is lost."""
    await login.alter(setting, "100ms")
    async with flow_of(journal).open(login.dsn) as app, app.worker():
        held = await app.jobs.schedule(Hold(label="held"))
        await journal.until_started("held")
        async with locked(login.admin_dsn, "eventflow.job", "eventflow.running"):
            journal.gate.set()
            await failures.until_seen("settle", "watch")
            with pytest.raises(DatabaseUnavailableError, match="timeout"):
                await app.jobs.schedule(Note())
        record = await ended(app, held)
        await app.jobs.schedule(Note(label="probe"))
        await journal.until_started("probe")

    assert (record.state, record.attempt, record.claim_no, record.past_attempts) == (JobState.SUCCEEDED, 1, 1, [])
    assert journal.cancelled == []
    assert set(failures.count().values()) == {1}


@pytest.mark.parametrize("setting", ["statement_timeout", "transaction_timeout"])
async def test_timeouts_heal_when_the_setting_is_gone(
    setting: str, login: Login, journal: Journal, failures: Failures
) -> None:
    """A claim takes longer than allowed, every time; without the setting it succeeds, in a session that knows."""
    await login.command(
        "CREATE FUNCTION public.dawdle() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END $$"
    )
    await login.command(
        "CREATE TRIGGER dawdle BEFORE INSERT ON eventflow.running FOR EACH ROW EXECUTE FUNCTION public.dawdle()"
    )
    await login.alter(setting, "100ms")
    async with flow_of(journal).open(login.dsn) as app, app.worker():
        job_id = await app.jobs.schedule(Note())
        await failures.until_seen("claim")
        await login.reset()
        record = await ended(app, job_id)

    assert (record.state, record.attempt, record.past_attempts) == (JobState.SUCCEEDED, 1, [])


async def test_idle_session_timeout_rescues_nobody(
    login: Login, journal: Journal, failures: Failures, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends every session that waits, LISTEN too: the worker says so once, and nobody takes it for dead."""
    await login.alter("idle_session_timeout", "150ms")
    async with (
        flow_of(journal).open(login.dsn) as app,
        app.worker(),
        flow_of(Journal()).open(login.dsn) as other,
        other.worker(WorkerSettings(queues=("none of these",))),
    ):
        held = await app.jobs.schedule(Hold(label="held"))
        await journal.until_started("held")
        listening = set[int]()

        async def were_replaced() -> bool:
            nonlocal listening
            listening |= await login.sessions("eventflow listen%")
            return len(listening) >= 14  # by then nobody has listened for half a second, again and again

        await eventually(were_replaced)
        await scheduled_when_possible(app, "between")
        await journal.until_started("between")
        journal.gate.set()
        record = await ended(app, held)

    assert (record.state, record.claim_no, record.crashes) == (JobState.SUCCEEDED, 1, 0)
    assert failures.count()["listen"] == 2  # one for each worker
    assert "worker.rescued" not in caplog.messages


@pytest.mark.parametrize(
    ("error", "unknown"),
    [
        (asyncpg.IdleSessionTimeoutError, False),
        (asyncpg.IdleInTransactionSessionTimeoutError, False),
        (asyncpg.TransactionTimeoutError, False),
        (asyncpg.QueryCanceledError, False),
        (asyncpg.TooManyConnectionsError, False),
        (asyncpg.AdminShutdownError, True),
        (asyncpg.CrashShutdownError, True),
    ],
)
async def test_lost_connection_is_as_uncertain_as_what_the_server_said_last(
    error: type[asyncpg.PostgresError], unknown: bool
) -> None:
    """A session that somebody's timeout ended has not committed; nobody need look the jobs up."""
    lost = asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
    assert may_have_committed(lost)
    lost.__cause__ = error("terminating connection")
    assert (may_have_committed(lost), may_have_committed(lost.__cause__)) == (unknown, unknown)


async def test_transaction_that_idled_too_long_is_told(login: Login, journal: Journal) -> None:
    """Nothing of it was written, its error says so, and the next one works."""
    await login.alter("idle_in_transaction_session_timeout", "50ms")
    async with flow_of(journal).open(login.dsn) as app:

        async def idle() -> None:
            async with app.transaction() as connection:
                await app.jobs.schedule(Note(), connection=connection)
                await eventually(lambda: login.has_no("eventflow transactions%"))

        with pytest.raises(DatabaseUnavailableError):
            await idle()
        async with app.transaction() as connection:
            second = await app.jobs.schedule(Note(), connection=connection)
        assert [record.id for record in await app.jobs.find()] == [second]


async def test_running_job_completes_when_there_is_room_again(
    login: Login, journal: Journal, failures: Failures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The role has no connection left, nor may it get one: no busy loop, one line per service, healed in 2 s."""
    attempts, connect = 0, asyncpg.connect

    async def counted(*args: Any, **options: Any) -> Any:  # Any: the driver's signature
        nonlocal attempts
        attempts += 1
        return await connect(*args, **options)

    async with flow_of(journal).open(login.dsn) as app, app.worker():
        held = await app.jobs.schedule(Hold(label="held"))
        await journal.until_started("held")
        await login.limit(0)
        monkeypatch.setattr(asyncpg, "connect", counted)
        await login.disconnect()
        began_at = CLOCK.monotonic()
        journal.gate.set()
        await failures.until_seen("settle", "watch", "listen")
        with pytest.raises(DatabaseUnavailableError, match="too many connections"):
            await app.jobs.schedule(Note())
        await until(lambda: attempts >= 20)
        tried_for = CLOCK.monotonic() - began_at

        await login.limit(-1)
        room_at = CLOCK.monotonic()
        record = await ended(app, held)
        await scheduled_when_possible(app, "probe")
        await journal.until_started("probe")
        healed_after = CLOCK.monotonic() - room_at

    assert tried_for > 1.0
    assert healed_after < 2.0
    assert (record.state, record.attempt, record.claim_no) == (JobState.SUCCEEDED, 1, 1)
    assert journal.cancelled == []
    assert set(failures.count().values()) == {1}


@pytest.fixture
def small_server() -> Generator[EmbeddedPostgres]:
    """A server of this test's own, with room for few."""
    settings = {"max_connections": str(MOST_CONNECTIONS), "superuser_reserved_connections": "0"}
    with TemporaryDirectory(prefix="eventflow-small-") as directory:
        Path(directory).chmod(0o755)
        root = Path(directory) / "postgres"
        with EmbeddedPostgres(root, durable=False, template=cached_template(), settings=settings) as embedded:
            yield embedded


async def test_worker_process_waits_for_room_on_a_full_server(small_server: EmbeddedPostgres, tmp_path: Path) -> None:
    """max_connections is exhausted before it starts: it says so once, and has started 2 s after somebody leaves."""
    dsn, log = small_server.dsn(), tmp_path / "worker.log"
    first: Connection = await asyncpg.connect(dsn)
    await migrate(first)
    crowd = [first, *[await asyncpg.connect(dsn) for _ in range(MOST_CONNECTIONS - 1)]]
    with pytest.raises(DatabaseUnavailableError):
        async with flow.open(dsn):
            pass
    command = [sys.executable, "-m", "eventflow", "worker", f"{__name__}:flow"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "EVENTFLOW_DSN": dsn}, stdout=stream, stderr=stream
        )
    try:
        await until(lambda: "database.away" in log.read_text())
        await until(lambda: small_server.log_path.read_text().count("too many clients") >= 10)  # the pauses have grown
        for connection in crowd:
            await connection.close()
        room_at = CLOCK.monotonic()
        await until(lambda: "worker.started" in log.read_text())
        started_after = CLOCK.monotonic() - room_at
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()

    assert started_after < 2.0
    assert log.read_text().count("database.away") == 1


async def test_serializable_by_default_does_not_concern_the_worker(
    login: Login, journal: Journal, failures: Failures
) -> None:
    """Workers and producers get along without a conflict; the caller's own transactions are as the DBA wants."""
    await login.alter("default_transaction_isolation", "serializable")
    async with (
        flow_of(journal).open(login.dsn) as app,
        app.worker(),
        flow_of(journal).open(login.dsn) as other,
        other.worker(),
        anyio.create_task_group() as group,
    ):

        async def produce(producer: App) -> None:
            for _ in range(100):
                await producer.jobs.schedule(Note())

        group.start_soon(produce, app)
        group.start_soon(produce, other)
        await journal.until_runs(200)
        async with app.transaction() as connection:
            assert await connection.fetchval("SHOW transaction_isolation") == "serializable"

    assert failures.count() == {}


async def test_handlers_transaction_is_read_committed_whatever_is_set(login: Login, journal: Journal) -> None:
    """Its commit sees what others have written by then; higher, that would be a failed attempt each time."""
    await login.alter("default_transaction_isolation", "serializable")
    flow, levels = flow_of(journal), list[str]()

    @flow.command_handler
    async def look(command: Look, context: CommandContext) -> None:
        connection = await context.transaction()
        levels.append(await connection.fetchval("SHOW transaction_isolation"))

    async with flow.open(login.dsn) as app:
        await app.commands.publish(Look())
    assert levels == ["read committed"]


@pytest.mark.parametrize(("value", "shown"), [(None, "1min"), ("5s", "5s")], ids=["nothing set", "set"])
async def test_transaction_without_its_client_ends(
    value: str | None, shown: str, login: Login, journal: Journal
) -> None:
    """After a minute, unless a DBA has set something: until then it may hold a stream."""
    if value is not None:
        await login.alter("idle_in_transaction_session_timeout", value)
    async with flow_of(journal).open(login.dsn) as app, app.transaction() as connection:
        assert await connection.fetchval("SHOW idle_in_transaction_session_timeout") == shown


async def test_read_only_by_default_is_waited_for(
    login: Login, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    """Who schedules is told, the worker says so and waits; without the setting it works within 2 s, in new sessions."""
    await login.alter("default_transaction_read_only", "on")
    async with flow_of(journal).open(login.dsn) as app, anyio.create_task_group() as group:
        worker = app.create_worker(WorkerSettings())
        group.start_soon(worker.run)
        with pytest.raises(DatabaseUnavailableError, match="default_transaction_read_only"):
            await app.jobs.schedule(Note())
        await until(lambda: "worker.database_away" in caplog.messages)
        await login.reset()
        reset_at = CLOCK.monotonic()
        await scheduled_when_possible(app, "probe")
        await journal.until_started("probe")
        assert CLOCK.monotonic() - reset_at < 2.0
        worker.stop()

    assert "read only" in str(next(r for r in caplog.records if r.message == "worker.database_away").__dict__["error"])
