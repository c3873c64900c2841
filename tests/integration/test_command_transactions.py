"""Commands in the transaction of whoever publishes them, and transactions that handlers ask for."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import asyncpg
import pytest

from eventflow import App, DomainError, DuplicateOperationError, OptimisticConcurrencyError
from eventflow.postgres import Connection
from reliability.rig.transitions import Transitions
from tests.support.journal import ended, query
from tests.support.ledgers import (
    Deposit,
    Gate,
    LedgerId,
    Remind,
    WriteRow,
    amounts,
    create_own_rows,
    ledger_flow,
    write_row,
    written,
)
from tests.support.waiting import eventually, until

LEDGER = LedgerId("ledger-0192f0c1-0000-7000-8000-000000000001")
OTHER = LedgerId("ledger-0192f0c1-0000-7000-8000-000000000002")
OPEN = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'
"""
WAITING_FOR_THE_STREAM = """
SELECT count(*) FROM pg_locks JOIN pg_database ON oid = database
WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted
"""


@pytest.fixture
async def gate(admin_dsn: str) -> Gate:
    """Where handlers wait; there is a table for what they write."""
    await create_own_rows(admin_dsn)
    return Gate()


@asynccontextmanager
async def opened(dsn: str, gate: Gate) -> AsyncGenerator[tuple[App, App]]:
    """The application, twice, as in two processes."""
    async with ledger_flow(gate).open(dsn) as app, ledger_flow(gate).open(dsn) as another:
        yield app, another


# In the caller's transaction


async def test_commands_of_one_transaction_see_each_other_and_nobody_else_does_before_its_commit(
    dsn: str, admin_dsn: str, gate: Gate
) -> None:
    """Two on one aggregate and one on another, with a row of the caller's, follow-ups and a deadline: all at once."""
    async with ledger_flow(gate).open(dsn) as app:
        async with app.transaction() as connection:
            await write_row(connection, "the caller's")
            results = [
                await app.commands.publish(
                    Deposit(aggregate_id=LEDGER, amount=5, announces=True), connection=connection
                ),
                await app.commands.publish(Deposit(aggregate_id=LEDGER, amount=6, writes=True), connection=connection),
                await app.commands.publish(Deposit(aggregate_id=OTHER, amount=7), connection=connection),
            ]
            await app.commands.publish(Remind(aggregate_id=LEDGER, seconds=60), connection=connection)
            assert await written(admin_dsn) == (0, 0, 0, 0)
            assert await app.jobs.find() == []

        assert results == [5, 11, 7]
        assert await written(admin_dsn) == (3, 4, 1, 2)
        assert await amounts(admin_dsn, LEDGER) == [5, 6]
        assert sorted(job.name for job in await app.jobs.find()) == ["FollowUp", "PublishCommand:Overdue"]


async def test_nothing_is_left_of_a_transaction_that_is_rolled_back(dsn: str, admin_dsn: str, gate: Gate) -> None:
    """Neither receipts: the same commands can be published again afterwards."""
    async with ledger_flow(gate).open(dsn) as app:
        command = Deposit(aggregate_id=LEDGER, announces=True, writes=True)

        async def fail() -> None:
            async with app.transaction() as connection:
                assert await app.commands.publish(command, connection=connection) == 1
                with pytest.raises(DuplicateOperationError):
                    await app.commands.publish(command, connection=connection)
                raise DomainError("the caller changes its mind")

        with pytest.raises(DomainError):
            await fail()
        assert await written(admin_dsn) == (0, 0, 0, 0)
        assert await app.commands.publish(command) == 1
        assert await written(admin_dsn) == (1, 1, 1, 1)


async def test_refused_command_leaves_the_callers_transaction_usable(dsn: str, admin_dsn: str, gate: Gate) -> None:
    """A handler that says no has written nothing; what the caller does besides goes through."""
    async with ledger_flow(gate).open(dsn) as app:
        async with app.transaction() as connection:
            with pytest.raises(DomainError):
                await app.commands.publish(Deposit(aggregate_id=LEDGER, amount=0), connection=connection)
            assert await app.commands.publish(Deposit(aggregate_id=LEDGER, amount=2), connection=connection) == 2

        assert await amounts(admin_dsn, LEDGER) == [2]


async def test_conflict_within_the_callers_transaction_is_settled_there(dsn: str, admin_dsn: str, gate: Gate) -> None:
    """Another writes while the handler runs: it runs again, on what was committed, and the row before is kept."""
    async with opened(dsn, gate) as (app, another):
        balances: list[int] = []

        async def publish() -> None:
            async with app.transaction() as connection:
                await write_row(connection, "the caller's")
                balances.append(
                    await app.commands.publish(
                        Deposit(aggregate_id=LEDGER, amount=2, waits=True), connection=connection
                    )
                )

        async with anyio.create_task_group() as group:
            group.start_soon(publish)
            await until(lambda: gate.arrived)
            await another.commands.publish(Deposit(aggregate_id=LEDGER, amount=40))
            gate.opened.set()

        assert balances == [42]
        assert gate.arrived == 2
        assert await amounts(admin_dsn, LEDGER) == [40, 2]
        assert await written(admin_dsn) == (2, 2, 0, 1)


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_conflict_that_the_callers_snapshot_hides_is_said_once_and_for_all(
    isolation: str, dsn: str, admin_dsn: str, gate: Gate
) -> None:
    """The snapshot never shows the other's event: the handler is not run again in a transaction that has failed."""
    async with opened(dsn, gate) as (app, another):
        connection: Connection = await asyncpg.connect(dsn)
        scope = connection.transaction(isolation=isolation)  # pyright: ignore[reportArgumentType]
        await scope.start()
        await connection.execute("SELECT FROM own_row")  # takes the snapshot
        await another.commands.publish(Deposit(aggregate_id=LEDGER))

        with pytest.raises(OptimisticConcurrencyError):
            await app.commands.publish(Deposit(aggregate_id=LEDGER, announces=True), connection=connection)
        await scope.rollback()

        async with connection.transaction(isolation=isolation):  # pyright: ignore[reportArgumentType]
            assert await app.commands.publish(Deposit(aggregate_id=LEDGER, announces=True), connection=connection) == 2
        await connection.close()
        assert await amounts(admin_dsn, LEDGER) == [1, 1]


async def test_writers_of_one_stream_wait_for_the_callers_commit(dsn: str, admin_dsn: str, gate: Gate) -> None:
    """What is not committed yet is in nobody's way but that of its own stream's writers, who come after it."""
    async with opened(dsn, gate) as (app, another):
        balances: list[int] = []

        async def publish() -> None:
            balances.append(await another.commands.publish(Deposit(aggregate_id=LEDGER, amount=2)))

        async with anyio.create_task_group() as group, app.transaction() as connection:
            await app.commands.publish(Deposit(aggregate_id=LEDGER, amount=40), connection=connection)
            group.start_soon(publish)
            await eventually(lambda: _number(admin_dsn, WAITING_FOR_THE_STREAM))
            assert await another.commands.publish(Deposit(aggregate_id=OTHER)) == 1
            assert balances == []

        assert balances == [42]
        assert await amounts(admin_dsn, LEDGER) == [40, 2]


# In a transaction that the handler asked for


async def test_row_of_a_handler_exists_exactly_if_the_events_do(dsn: str, admin_dsn: str, gate: Gate) -> None:
    """Whether it is published or scheduled; a handler that refuses afterwards leaves neither."""
    async with ledger_flow(gate).open(dsn) as app:
        with pytest.raises(DomainError):
            await app.commands.publish(Deposit(aggregate_id=LEDGER, amount=0, writes=True))
        assert await written(admin_dsn) == (0, 0, 0, 0)
        await app.commands.publish(Deposit(aggregate_id=LEDGER, writes=True))
        async with app.worker():
            await ended(app, await app.commands.schedule(Deposit(aggregate_id=LEDGER, writes=True)))

        assert await written(admin_dsn) == (2, 2, 0, 2)


@pytest.mark.parametrize("writes", [False, True], ids=["one statement", "transaction"])
async def test_all_that_a_scheduled_command_changes_is_one_transaction(
    writes: bool, dsn: str, admin_dsn: str, gate: Gate, transitions: Transitions
) -> None:
    """Event, receipt, follow-up job, the handler's own row, and the completion of the job that published it."""
    async with ledger_flow(gate).open(dsn) as app, app.worker():
        job_id = await app.commands.schedule(Deposit(aggregate_id=LEDGER, writes=writes, announces=True))
        await ended(app, job_id)
        [follow_up] = await app.jobs.find(name="FollowUp")

    written_in = {(await transitions.of(job_id))[-1].transaction, (await transitions.of(follow_up.id))[0].transaction}
    for table in ("eventflow.event", "eventflow.command_receipt", "own_row"):
        written_in |= {int(row["xmin"]) for row in await query(admin_dsn, f"SELECT xmin::text FROM {table}")}
    assert len(written_in) == 1
    assert await written(admin_dsn) == (1, 1, 1, int(writes))


async def test_row_of_a_handler_is_written_again_after_a_conflict(dsn: str, admin_dsn: str, gate: Gate) -> None:
    """The first transaction is rolled back with its row; the second try has one of its own."""
    async with opened(dsn, gate) as (app, another):
        async with anyio.create_task_group() as group:
            group.start_soon(app.commands.publish, Deposit(aggregate_id=LEDGER, amount=2, waits=True, writes=True))
            await until(lambda: gate.arrived)
            await another.commands.publish(Deposit(aggregate_id=LEDGER, amount=40))
            gate.opened.set()

        assert gate.arrived == 2
        assert await amounts(admin_dsn, LEDGER) == [40, 2]
        assert await written(admin_dsn) == (2, 2, 0, 1)


async def test_handler_that_is_cancelled_leaves_no_transaction_behind(dsn: str, admin_dsn: str, gate: Gate) -> None:
    """Its row is gone, and its connection is back in the pool: so often that the pool would be empty."""
    async with ledger_flow(gate).open(dsn) as app:
        for number in range(1, 8):
            async with anyio.create_task_group() as group:
                group.start_soon(app.commands.publish, Deposit(aggregate_id=LEDGER, waits=True, writes=True))
                await until(lambda number=number: gate.arrived == number)
                group.cancel_scope.cancel()

        assert await _number(admin_dsn, OPEN) == 0
        assert await written(admin_dsn) == (0, 0, 0, 0)
        assert await app.commands.publish(Deposit(aggregate_id=LEDGER, writes=True)) == 1


async def test_no_connection_is_held_while_a_handler_runs_that_asks_for_none(
    dsn: str, admin_dsn: str, gate: Gate
) -> None:
    """A hundred handlers at once: no transaction is open meanwhile."""
    async with ledger_flow(gate).open(dsn) as app:
        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(app.commands.publish, Deposit(aggregate_id=LedgerId.new(), waits=True))
            await until(lambda: gate.arrived == 100)
            assert await _number(admin_dsn, OPEN) == 0
            gate.opened.set()

        assert await written(admin_dsn) == (100, 100, 0, 0)


async def test_more_handlers_than_connections_write_in_turns(dsn: str, admin_dsn: str, gate: Gate) -> None:
    """They wait for one of the pool's; none waits for ever, since none needs two."""
    async with ledger_flow(gate).open(dsn) as app:
        gate.opened.set()
        async with anyio.create_task_group() as group:
            for _ in range(40):
                group.start_soon(app.commands.publish, Deposit(aggregate_id=LedgerId.new(), writes=True, waits=True))

        assert await written(admin_dsn) == (40, 40, 0, 40)


async def test_job_without_a_command_completes_in_its_own_transaction(dsn: str, admin_dsn: str, gate: Gate) -> None:
    """Its row, its follow-up job and its completion come at once."""
    async with ledger_flow(gate).open(dsn) as app:
        async with app.worker():
            job_id = await app.jobs.schedule(WriteRow())
            await until(lambda: gate.arrived)
            assert await written(admin_dsn) == (0, 0, 0, 0)
            gate.opened.set()
            await ended(app, job_id)

        assert await written(admin_dsn) == (0, 0, 1, 1)


async def _number(admin_dsn: str, sql: str) -> int:
    [row] = await query(admin_dsn, sql)
    number: int = row["count"]
    return number
