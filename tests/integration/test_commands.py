"""Commands on aggregates on Postgres: what publish does, remembers and writes beside the events."""

from datetime import timedelta

import anyio
import asyncpg
import pytest

from eventflow import App, DatabaseError, DomainError, DuplicateOperationError, JobState, SourceId
from eventflow.eventstore import EventId, EventMetadata, StreamId
from eventflow.postgres import Connection
from reliability.rig.pooler import pgbouncer
from tests.support.journal import ended, query
from tests.support.ledgers import (
    Announce,
    Deposit,
    Deposited,
    Gate,
    LedgerId,
    Overdue,
    Remind,
    amounts,
    create_own_rows,
    ledger_flow,
    written,
)
from tests.support.pgbouncer import needs_pgbouncer
from tests.support.waiting import eventually, until, waits_for_lock

LEDGER = LedgerId("ledger-0192f0c1-0000-7000-8000-000000000001")
OTHER = LedgerId("ledger-0192f0c1-0000-7000-8000-000000000002")
AGE = "UPDATE eventflow.command_receipt SET done_at = done_at - $2::interval WHERE source_id = $1"


@pytest.fixture
async def gate(admin_dsn: str) -> Gate:
    """Open, for who does not close it; there is a table for what handlers write."""
    await create_own_rows(admin_dsn)
    gate = Gate()
    gate.opened.set()
    return gate


async def deadlines(admin_dsn: str) -> list[tuple[str, str, str]]:
    """Of each deadline its aggregate's id, its name and the state of its job."""
    rows = await query(
        admin_dsn,
        "SELECT d.aggregate_id, d.name, j.state FROM eventflow.deadline AS d"
        " LEFT JOIN eventflow.any_job AS j ON j.id = d.job_id ORDER BY 1, 2",
    )
    return [(row["aggregate_id"], row["name"], row["state"]) for row in rows]


async def test_command_stores_events_and_returns_its_result(dsn: str, admin_dsn: str, gate: Gate) -> None:
    """On the aggregate as its events tell; another process goes on from there, and each aggregate has its own."""
    async with ledger_flow(gate).open(dsn) as app, ledger_flow(gate).open(dsn) as another:
        results = [
            await app.commands.publish(Deposit(aggregate_id=LEDGER, amount=5)),
            await another.commands.publish(Deposit(aggregate_id=LEDGER, amount=6)),
            await app.commands.publish(Deposit(aggregate_id=OTHER, amount=7)),
        ]
    assert results == [5, 11, 7]
    assert await amounts(admin_dsn, LEDGER) == [5, 6]
    assert await amounts(admin_dsn, OTHER) == [7]


async def test_refused_command_leaves_nothing(dsn: str, admin_dsn: str, gate: Gate) -> None:
    """Not even a receipt: it may be tried again. A preview leaves nothing either."""
    refused = Deposit(aggregate_id=LEDGER, amount=0, announces=True)
    async with ledger_flow(gate).open(dsn) as app:
        for _ in range(2):
            with pytest.raises(DomainError):
                await app.commands.publish(refused)
        previewed = await app.commands.preview(Deposit(aggregate_id=LEDGER, amount=3, announces=True, writes=True))
    assert previewed == (Deposited(amount=3),)
    assert await written(admin_dsn) == (0, 0, 0, 0)


async def test_commit_is_not_cancelled_halfway(dsn: str, admin_dsn: str, admin: Connection, gate: Gate) -> None:
    """Whoever gives up while it is being written is told what came of it: half of it would be an unknown one."""
    giving_up, balances = anyio.CancelScope(), list[int]()

    async def publish(app: App) -> None:
        with giving_up:
            balances.append(await app.commands.publish(Deposit(aggregate_id=LEDGER, amount=5)))

    async with ledger_flow(gate).open(dsn) as app, anyio.create_task_group() as group, admin.transaction():
        await admin.execute("SELECT pg_advisory_xact_lock(eventflow.stream_key('Ledger', $1))", LEDGER)
        group.start_soon(publish, app)
        await eventually(lambda: waits_for_lock(admin, "Everything that a command changes"))
        giving_up.cancel()
    assert (balances, await amounts(admin_dsn, LEDGER)) == ([5], [5])


async def test_same_command_is_done_once_whoever_publishes_it(dsn: str, admin_dsn: str, gate: Gate) -> None:
    """A direct caller is told what came of it the first time, a job succeeds; the same id elsewhere is another one."""
    once = Deposit(aggregate_id=LEDGER, amount=5, announces=True, source_id=SourceId("order 17"))
    elsewhere = Deposit(aggregate_id=OTHER, amount=5, source_id=SourceId("order 17"))
    async with ledger_flow(gate).open(dsn) as app, app.worker():
        assert await app.commands.publish(once) == 5
        await app.commands.publish(Deposit(aggregate_id=LEDGER, amount=6))
        with pytest.raises(DuplicateOperationError) as raised:
            await app.commands.publish(once)
        record = await ended(app, await app.commands.schedule(once))
        assert await app.commands.publish(elsewhere) == 5

    assert raised.value.result == 5
    assert (record.state, record.attempt) == (JobState.SUCCEEDED, 1)
    assert await amounts(admin_dsn, LEDGER) == [5, 6]
    assert await written(admin_dsn) == (3, 3, 1, 0)


@pytest.mark.parametrize("standalone", [False, True])
async def test_same_command_at_the_same_moment_is_done_once(
    standalone: bool, dsn: str, admin_dsn: str, gate: Gate
) -> None:
    """All handlers have run before the first commits: one caller has the result, the others are told of it."""
    gate.opened = anyio.Event()
    command = Announce() if standalone else Deposit(aggregate_id=LEDGER, announces=True, waits=True, writes=True)
    results: list[int] = []
    told: list[object] = []
    async with (
        ledger_flow(gate).open(dsn) as first,
        ledger_flow(gate).open(dsn) as second,
        ledger_flow(gate).open(dsn) as third,
    ):

        async def publish(number: int) -> None:
            try:
                results.append(await (first, second, third)[number].commands.publish(command))
            except DuplicateOperationError as exc:
                told.append(exc.result)

        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(publish, number)
            await until(lambda: gate.arrived == 3)
            gate.opened.set()

    assert len(results) == 1
    assert told == results * 2
    assert await written(admin_dsn) == ((0, 1, 1, 0) if standalone else (1, 1, 1, 1))


async def test_receipts_are_kept_for_thirty_days(dsn: str, admin_dsn: str, gate: Gate) -> None:
    """A worker forgets older ones; then the command is done again."""
    old, older = (Deposit(aggregate_id=LEDGER) for _ in range(2))
    async with ledger_flow(gate).open(dsn) as app:
        for command, days in ((old, 29), (older, 31)):
            await app.commands.publish(command)
            await query(admin_dsn, AGE, command.source_id, timedelta(days=days))
        async with app.worker():

            async def is_forgotten() -> bool:
                return (await written(admin_dsn))[1] == 1

            await eventually(is_forgotten)
        with pytest.raises(DuplicateOperationError):
            await app.commands.publish(old)
        assert await app.commands.publish(older) == 3


async def test_events_tell_where_they_come_from(dsn: str, gate: Gate) -> None:
    """Command, operation and job; what directly caused them, and what it all began with."""
    direct, remind = Deposit(aggregate_id=LEDGER), Remind(aggregate_id=LEDGER, seconds=0)
    async with ledger_flow(gate).open(dsn) as app, app.worker():
        await app.commands.publish(direct)
        await app.commands.publish(remind)
        [job] = await app.jobs.find(name="PublishCommand:Overdue")
        await ended(app, job.id)
        first, second = await app.events.load(StreamId("Ledger", LEDGER))
    assert first.metadata == EventMetadata(
        source_id=direct.source_id,
        command="Deposit",
        correlation_id=direct.source_id,
        causation_id=direct.source_id,
    )
    assert second.metadata == EventMetadata(
        source_id=second.metadata.source_id,
        command="Overdue",
        job_id=job.id,
        correlation_id=remind.source_id,
        causation_id=job.id,
    )
    assert first.id == EventId.at(StreamId("Ledger", LEDGER), 1)
    assert (first.position < second.position, first.recorded_at < second.recorded_at) == (True, True)


async def test_deadline_comes_about_with_the_command_that_set_it(dsn: str, admin_dsn: str, gate: Gate) -> None:
    """Its command is published as a job of its own, and then there is no deadline any more."""
    async with ledger_flow(gate).open(dsn) as app, app.worker():
        await app.commands.publish(Remind(aggregate_id=LEDGER, seconds=0))
        [job] = await app.jobs.find(name="PublishCommand:Overdue")
        record = await ended(app, job.id)
    assert record.state is JobState.SUCCEEDED
    assert await amounts(admin_dsn, LEDGER) == [100]
    assert await deadlines(admin_dsn) == []


async def test_deadline_is_replaced_and_cancelled(dsn: str, admin_dsn: str, gate: Gate) -> None:
    """One job of each name and aggregate at most, which goes with it; to cancel none is fine."""
    async with ledger_flow(gate).open(dsn) as app:
        await app.commands.publish(Remind(aggregate_id=OTHER, seconds=60))
        for seconds in (3600, 60, 1800):
            await app.commands.publish(Remind(aggregate_id=LEDGER, seconds=seconds))
        assert await deadlines(admin_dsn) == [(LEDGER, "overdue", "waiting"), (OTHER, "overdue", "waiting")]
        waiting = await app.jobs.find(name="PublishCommand:Overdue")
        assert sorted(round((job.due_at - job.created_at).total_seconds()) for job in waiting) == [60, 1800]
        for _ in range(2):
            await app.commands.publish(Remind(aggregate_id=LEDGER))
        assert len(await app.jobs.find(name="PublishCommand:Overdue")) == 1
    assert await deadlines(admin_dsn) == [(OTHER, "overdue", "waiting")]


@pytest.mark.parametrize("seconds", [None, 3600], ids=["cancelled", "replaced"])
async def test_deadline_that_goes_while_its_command_runs_has_no_effect(
    seconds: float | None, dsn: str, admin_dsn: str, gate: Gate
) -> None:
    """Whichever commits first wins: its job ends as cancelled, once, and nothing that it did is written."""
    gate.opened = anyio.Event()
    async with ledger_flow(gate).open(dsn) as app, ledger_flow(gate).open(dsn) as another, app.worker():
        await app.commands.publish(Remind(aggregate_id=LEDGER, seconds=0))
        [job] = await app.jobs.find(name="PublishCommand:Overdue")
        await until(lambda: gate.arrived)
        await another.commands.publish(Remind(aggregate_id=LEDGER, seconds=seconds))
        gate.opened.set()
        record = await ended(app, job.id)
    assert (record.state, record.attempt) == (JobState.CANCELLED, 1)
    assert await amounts(admin_dsn, LEDGER) == []
    assert await deadlines(admin_dsn) == ([] if seconds is None else [(LEDGER, "overdue", "waiting")])


async def test_deadline_is_not_shared_with_its_command(dsn: str, admin_dsn: str, gate: Gate) -> None:
    """The same command published by hand is another operation: it neither needs nor ends the deadline."""
    async with ledger_flow(gate).open(dsn) as app:
        await app.commands.publish(Remind(aggregate_id=LEDGER, seconds=60))
        await app.commands.publish(Overdue(aggregate_id=LEDGER))
    assert await amounts(admin_dsn, LEDGER) == [100]
    assert await deadlines(admin_dsn) == [(LEDGER, "overdue", "waiting")]


async def test_worker_role_suffices_and_producer_may_only_schedule(
    dsn: str, producer_dsn: str, admin_dsn: str, gate: Gate
) -> None:
    """Every way to publish, with rows, deadlines and forgetting; a producer's direct publish is refused whole."""
    flow = ledger_flow(gate)
    async with flow.open(dsn) as app, flow.open(producer_dsn) as producer, app.worker():
        scheduled = await producer.commands.schedule(Deposit(aggregate_id=LEDGER, writes=True, announces=True))
        await ended(app, scheduled)
        with pytest.raises(DatabaseError):
            await producer.commands.publish(Deposit(aggregate_id=LEDGER))
        async with app.transaction() as connection:
            await app.commands.publish(Remind(aggregate_id=LEDGER, seconds=60), connection=connection)
        await app.commands.publish(Remind(aggregate_id=LEDGER))
    assert await written(admin_dsn) == (1, 3, 1, 1)


async def test_events_are_not_changed_by_any_role(dsn: str, producer_dsn: str, viewer_dsn: str, gate: Gate) -> None:
    """A worker appends; nobody updates or deletes; a viewer reads, and a producer does not even that."""
    async with ledger_flow(gate).open(dsn) as app:
        await app.commands.publish(Deposit(aggregate_id=LEDGER))
    for address in (dsn, producer_dsn, viewer_dsn):
        for change in ("UPDATE eventflow.event SET data = '{}'", "DELETE FROM eventflow.event"):
            assert await _is_refused(address, change)
    for table in ("event", "command_receipt", "deadline", "snapshot"):
        assert await _is_refused(producer_dsn, f"SELECT * FROM eventflow.{table}")
        assert await _is_refused(viewer_dsn, f"DELETE FROM eventflow.{table}")
        assert not await _is_refused(viewer_dsn, f"SELECT * FROM eventflow.{table}")


async def _is_refused(dsn: str, sql: str) -> bool:
    try:
        await query(dsn, sql)
    except asyncpg.InsufficientPrivilegeError:
        return True
    return False


@needs_pgbouncer
async def test_commands_work_through_a_pooler(dsn: str, admin_dsn: str, gate: Gate) -> None:
    """In transaction mode, with fewer sessions than connections: all ways to commit, and locks that end with them."""
    ledgers = [LedgerId.new() for _ in range(5)]
    with pgbouncer(dsn, pool_size=3) as bouncer:
        flow = ledger_flow(gate)
        async with flow.open(bouncer.dsn) as app, flow.open(bouncer.dsn) as another, app.worker():
            jobs = [
                await app.commands.schedule(Deposit(aggregate_id=ledger, announces=True, writes=number % 2 == 0))
                for ledger in ledgers
                for number in range(4)
            ]

            async def publish(publisher: App, ledger: LedgerId) -> None:
                await publisher.commands.publish(Deposit(aggregate_id=ledger, writes=True))

            async with anyio.create_task_group() as group:
                for ledger in ledgers:
                    for publisher in (app, another):
                        group.start_soon(publish, publisher, ledger)
            for job_id in jobs:
                assert (await ended(app, job_id)).state is JobState.SUCCEEDED
            async with app.transaction() as connection:
                await app.commands.publish(Deposit(aggregate_id=ledgers[0]), connection=connection)
    assert [len(await amounts(admin_dsn, ledger)) for ledger in ledgers] == [7, 6, 6, 6, 6]
    assert (await written(admin_dsn))[3] == 5 * 2 + 5 * 2
