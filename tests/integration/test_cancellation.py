"""Every public coroutine, cancelled at every one of its suspensions: whole or not at all, and nothing is leaked."""

from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import anyio
import asyncpg
import pytest

from eventflow import (
    App,
    CommandContext,
    EventFlow,
    Job,
    JobContext,
    JobId,
    JobState,
    Services,
    StandaloneCommand,
    Worker,
    WorkerSettings,
)
from eventflow.postgres import Connection, migrate
from eventflow.postgres.group_insert import MOST_JOBS
from tests.support.cancellation import Cancel, cancel_everywhere, no_noise
from tests.support.journal import Journal, Note, flow_of, query
from tests.support.postgres import Database
from tests.support.waiting import eventually, until

LATER = timedelta(days=1)
MANY = 300
"""So many are copied into the table."""

HOW = pytest.mark.parametrize("how", Cancel, ids=lambda how: how.value)


class Announce(StandaloneCommand[None]):
    """Its handler schedules what is announced."""

    label: str


class AnnounceLater(StandaloneCommand[None]):
    """The same, without a handler of its own."""

    label: str


async def announce(command: Announce, context: CommandContext) -> None:
    """Two jobs, all or none."""
    for _ in range(2):
        context.schedule(Note(label=command.label), delay=LATER)


def shop(journal: Journal) -> EventFlow:
    """An application with everything that can be scheduled."""
    flow = flow_of(journal)
    flow.command_handler(announce)
    flow.add_commands(AnnounceLater)
    return flow


class Backstage:
    """What a database shows of those who use it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def count(self, label: str) -> int:
        """Jobs with this label, whatever they are."""
        found: int = await self._connection.fetchval(
            "SELECT count(*) FROM eventflow.job"
            " WHERE coalesce(payload::jsonb ->> 'label', payload::jsonb -> 'command' ->> 'label') = $1",
            label,
        )
        return found

    async def nothing_open(self, *, sessions: int | None = None) -> None:
        """No transaction is open, no advisory lock held; and, if given, there are at most so many sessions."""

        async def closed() -> bool:
            row = await self._connection.fetchrow(
                "SELECT count(*) AS sessions, count(*) FILTER (WHERE state <> 'idle') AS busy,"
                " (SELECT count(*) FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database"
                "  WHERE d.datname = current_database() AND l.locktype = 'advisory') AS locks"
                " FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
                " AND pid <> pg_backend_pid()"
            )
            assert row is not None
            closed.__qualname__ = f"nothing open: {dict(row)}"
            few = sessions is None or row["sessions"] <= sessions
            return few and not row["busy"] and not row["locks"]

        await eventually(closed, within=10)


@asynccontextmanager
async def opened_connection(dsn: str) -> AsyncGenerator[Connection]:
    """A connection of the test's own."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        connection.terminate()


@pytest.fixture
async def backstage(admin_dsn: str) -> AsyncGenerator[Backstage]:
    """A superuser's look; at the end of the test, nobody else may be connected."""
    async with opened_connection(admin_dsn) as connection:
        watching = Backstage(connection)
        yield watching
        await watching.nothing_open(sessions=0)


@asynccontextmanager
async def opened(dsn: str) -> AsyncGenerator[App]:
    """The shop, open; its one pooled connection is missed as soon as it is lost."""
    async with no_noise(), shop(Journal()).open(dsn, pool_size=1) as app:
        yield app


async def works(app: App) -> None:
    """Schedules over each of its connections, and looks it up."""
    with anyio.fail_after(10):
        async with app.transaction() as connection:
            first = await app.jobs.schedule(Note(label="works"), connection=connection, delay=LATER)
        second = await app.jobs.schedule(Note(label="works"), delay=LATER)
        assert await app.jobs.get(first) is not None
        assert await app.jobs.get(second) is not None


async def in_transaction(app: App, label: str) -> None:
    """Schedules in every way in one transaction."""
    async with app.transaction() as connection:
        await app.jobs.schedule(Note(label=label), connection=connection, delay=LATER)
        await app.jobs.schedule_many([Note(label=label)] * 2, connection=connection, notify="in_transaction")
        await app.commands.schedule(AnnounceLater(label=label), connection=connection)


SCHEDULING: dict[str, tuple[Callable[[App, str], Coroutine[Any, Any, object]], int]] = {
    "schedule": (lambda app, label: app.jobs.schedule(Note(label=label), delay=LATER), 1),
    "new queue": (lambda app, label: app.jobs.schedule(Note(label=label), queue=label), 1),
    "schedule_many": (lambda app, label: app.jobs.schedule_many([Note(label=label)] * 3), 3),
    "copy": (lambda app, label: app.jobs.schedule_many([Note(label=label)] * MANY), MANY),
    "transaction": (in_transaction, 4),
    "publish": (lambda app, label: app.commands.publish(Announce(label=label)), 2),
    "commands.schedule": (lambda app, label: app.commands.schedule(AnnounceLater(label=label)), 1),
    "commands.schedule_many": (lambda app, label: app.commands.schedule_many([AnnounceLater(label=label)] * 3), 3),
}


@HOW
@pytest.mark.parametrize("name", SCHEDULING)
async def test_scheduling_happens_whole_or_not_at_all(name: str, how: Cancel, dsn: str, backstage: Backstage) -> None:
    """A job exists once or not at all, all jobs of a call or none, and the application goes on."""
    schedule, jobs = SCHEDULING[name]

    async with opened(dsn) as app:

        async def check(position: int) -> None:
            await works(app)
            assert await backstage.count(f"{name} {position}") in (0, jobs)
            await backstage.nothing_open()

        await works(app)  # with its connections open, each call is suspended at the same places
        steps = await cancel_everywhere(how, lambda position: schedule(app, f"{name} {position}"), check)

    assert steps >= 1
    assert await backstage.count(f"{name} {steps + 1}") == jobs


@HOW
@pytest.mark.parametrize("ahead", [0, MOST_JOBS, 1], ids=["writes", "writes next", "waits"])
async def test_cancelling_a_caller_spares_those_who_share_its_commit(
    ahead: int, how: Cancel, dsn: str, backstage: Backstage
) -> None:
    """While one inserts, others wait and then share a commit: whoever is cancelled, the others' jobs exist once."""
    others = range(4)
    told: list[str] = []

    async def schedule(label: str, jobs: int = 1) -> None:
        await app.jobs.schedule_many([Note(label=label)] * jobs)
        told.append(label)

    async with opened(dsn) as app, anyio.create_task_group() as crowd:

        async def cancelled(position: int) -> None:
            for number in others:
                crowd.start_soon(schedule, f"{position} {number}")  # they come after us
            await schedule(f"{position} cancelled")

        def call(position: int) -> Coroutine[Any, Any, None]:
            if ahead:
                crowd.start_soon(schedule, f"{position} ahead", ahead)
            return cancelled(position)

        async def check(position: int) -> None:
            expected = [f"{position} {number}" for number in others]
            await until(lambda: set(told) >= {*expected})
            for label in expected:
                assert await backstage.count(label) == 1
            assert await backstage.count(f"{position} cancelled") in (0, 1)
            assert await backstage.count(f"{position} ahead") == ahead

        assert await cancel_everywhere(how, call, check) >= 1
        await works(app)


@HOW
async def test_asking_about_a_job_changes_it_or_not(how: Cancel, dsn: str, backstage: Backstage) -> None:
    """A cancelled ``cancel`` or ``reschedule`` has happened or has not; ``get`` and ``find`` change nothing."""
    async with opened(dsn) as app:
        job_id = JobId.new()

        async def ask(position: int) -> None:
            nonlocal job_id
            job_id = await app.jobs.schedule(Note(), delay=LATER)
            await app.jobs.get(job_id)
            await app.jobs.find(limit=1)
            await app.jobs.reschedule(job_id, delay=2 * LATER)
            await app.jobs.cancel(job_id)

        async def check(position: int) -> None:
            await works(app)
            await backstage.nothing_open()
            if record := await app.jobs.get(job_id):
                assert record.state in (JobState.WAITING, JobState.CANCELLED)
                days = round((record.due_at - record.created_at) / LATER)
                assert days in ((1, 2) if record.state is JobState.WAITING else (2,))

        assert await cancel_everywhere(how, ask, check) >= 5


@HOW
async def test_opening_and_closing_leaves_nothing_behind(how: Cancel, dsn: str, backstage: Backstage) -> None:
    """Cancelled while it is opened, used or closed: its lifespan is left, and no session stays."""
    entered = left = 0

    @asynccontextmanager
    async def lifespan(services: Services) -> AsyncGenerator[None]:
        nonlocal entered, left
        entered += 1
        try:
            await anyio.lowlevel.checkpoint()
            yield
        finally:
            left += 1

    flow = EventFlow("opened", lifespan=lifespan)
    flow.add_jobs(Note)

    async def use(position: int) -> None:
        async with flow.open(dsn) as app:
            await works(app)

    async def check(position: int) -> None:
        assert entered == left
        await backstage.nothing_open(sessions=0)

    async with no_noise():
        assert await cancel_everywhere(how, use, check, may_end=True) >= 10


LEFTOVERS = """
SELECT (SELECT count(*) FROM eventflow.worker WHERE closed_at IS NULL) AS open,
    (SELECT count(*) FROM eventflow.running) AS running,
    (SELECT count(*) FROM eventflow.job WHERE attempt > 0) AS charged
"""
"""Workers that look alive, jobs that look claimed, and waiting jobs that lost an attempt."""


class Meet(Job):
    """Says that it runs, and goes on until it is cancelled."""

    async def execute(self, context: JobContext) -> None:
        (await context.services.aget(anyio.Event)).set()
        await anyio.sleep_forever()


def meeting() -> tuple[EventFlow, anyio.Event]:
    """An application whose worker can be met at work."""
    met = anyio.Event()

    @asynccontextmanager
    async def lifespan(services: Services) -> AsyncGenerator[None]:
        services.register_value(anyio.Event, met)
        yield

    flow = EventFlow("meeting", lifespan=lifespan)
    flow.add_jobs(Meet, Note)
    return flow, met


@HOW
async def test_a_worker_leaves_nothing_claimed(how: Cancel, dsn: str, admin_dsn: str, backstage: Backstage) -> None:
    """Cancelled while it starts, works or stops: it is closed, and its job waits again as if never claimed."""

    async def work(position: int) -> None:
        flow, met = meeting()
        async with flow.open(dsn) as app, app.worker(WorkerSettings(grace_period=0)):
            await app.jobs.schedule(Meet())
            await met.wait()

    async def check(position: int) -> None:
        [row] = await query(admin_dsn, LEFTOVERS)
        assert dict(row) == {"open": 0, "running": 0, "charged": 0}
        await backstage.nothing_open(sessions=0)

    async with no_noise():
        assert await cancel_everywhere(how, work, check, may_end=True) >= 10


@HOW
async def test_the_run_of_a_worker_leaves_nothing_claimed(
    how: Cancel, dsn: str, admin_dsn: str, backstage: Backstage, caplog: pytest.LogCaptureFixture
) -> None:
    """The same for the coroutine of the worker itself; handlers are cancelled at once, however it is cancelled."""
    flow, met = meeting()
    async with no_noise(), flow.open(dsn) as app:

        async def run(position: int) -> None:
            worker = app.create_worker(WorkerSettings(grace_period=0))
            async with anyio.create_task_group() as group:
                group.start_soon(stop_when_met, worker)
                await worker.run()
                group.cancel_scope.cancel()

        async def stop_when_met(worker: Worker) -> None:
            await met.wait()
            worker.stop()

        async def check(position: int) -> None:
            [row] = await query(admin_dsn, LEFTOVERS)
            assert dict(row) == {"open": 0, "running": 0, "charged": 0}
            await backstage.nothing_open()

        await app.jobs.schedule(Meet())
        assert await cancel_everywhere(how, run, check, may_end=True) >= 4
    assert "worker.waiting_for_handlers" not in caplog.messages


@HOW
async def test_a_worker_in_memory_leaves_nothing_claimed(how: Cancel) -> None:
    """The same without a database."""
    flow, met = meeting()
    async with no_noise(), flow.open("memory:") as app:

        async def work(position: int) -> None:
            async with app.worker(WorkerSettings(grace_period=0)):
                await met.wait()

        async def check(position: int) -> None:
            record = await app.jobs.get(job_id)
            assert record is not None
            assert (record.state, record.attempt) == (JobState.WAITING, 0)

        job_id = await app.jobs.schedule(Meet())
        assert await cancel_everywhere(how, work, check, may_end=True) >= 2


@HOW
async def test_migrating_is_one_step(how: Cancel, empty_database: Database) -> None:
    """Cancelled anywhere, all tables are there or none, and the connection holds no lock and no transaction."""
    async with no_noise(), opened_connection(empty_database.admin) as admin:
        backstage = Backstage(admin)

        async def tables(schema: str) -> int:
            found: int = await admin.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = $1", schema)
            return found

        await migrate(admin, "whole")
        whole = await tables("whole")
        async with AsyncExitStack() as connections:

            async def migrate_once(position: int) -> None:
                connection = await connections.enter_async_context(opened_connection(empty_database.admin))
                await migrate(connection, f"cut_{position}")

            async def check(position: int) -> None:
                await backstage.nothing_open()
                assert await tables(f"cut_{position}") in (0, whole)
                await migrate(admin, f"cut_{position}")
                assert await tables(f"cut_{position}") == whole

            assert await cancel_everywhere(how, migrate_once, check) >= 8


@HOW
async def test_a_transaction_of_the_callers_own_is_his_to_end(how: Cancel, dsn: str, backstage: Backstage) -> None:
    """Scheduling in it can be cancelled anywhere, and be rolled back by its owner."""
    async with opened(dsn) as app, opened_connection(dsn) as connection:
        transaction = connection.transaction()
        await transaction.start()

        async def schedule(position: int) -> None:
            await app.jobs.schedule(Note(label="own"), connection=connection)
            await app.jobs.schedule_many([Note(label="own")] * 2, connection=connection, notify="in_transaction")

        async def check(position: int) -> None:
            nonlocal transaction
            await transaction.rollback()
            assert await backstage.count("own") == 0
            await backstage.nothing_open()
            await works(app)
            transaction = connection.transaction()
            await transaction.start()

        assert await cancel_everywhere(how, schedule, check) >= 3
        await transaction.rollback()


class Use(StandaloneCommand[None]):
    """Its handler uses two services."""


class First:
    """A service of one run."""


class Second(First):
    """Another."""


@HOW
@pytest.mark.parametrize("address", ["memory:", "instant:"])
async def test_services_of_a_run_are_closed(address: str, how: Cancel) -> None:
    """Cancelled while it opens, uses or closes them: none of them is forgotten."""
    opened = closing = 0

    @asynccontextmanager
    async def open_service(service: type[First]) -> AsyncGenerator[First]:
        nonlocal opened, closing
        await anyio.lowlevel.checkpoint()
        opened += 1
        try:
            yield service()
        finally:
            closing += 1
            await anyio.lowlevel.checkpoint()

    @asynccontextmanager
    async def lifespan(services: Services) -> AsyncGenerator[None]:
        for service in (First, Second):
            services.register_factory(service, partial(open_service, service))
        yield

    async def use(command: Use, context: CommandContext) -> None:
        await context.services.aget(First)
        await context.services.aget(Second)
        await anyio.lowlevel.checkpoint()

    flow = EventFlow("services", lifespan=lifespan)
    flow.command_handler(use)
    async with no_noise(), flow.open(address) as app:

        async def publish(position: int) -> None:
            await app.commands.publish(Use())
            await app.commands.schedule(Use())
            if address == "memory:":
                await app.run_due()

        async def check(position: int) -> None:
            assert opened == closing

        assert await cancel_everywhere(how, publish, check) >= 10
