"""A ledger: the aggregate whose commands tests publish, and what they look at afterwards."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio
import asyncpg

from eventflow import (
    Aggregate,
    Command,
    CommandContext,
    DomainError,
    Event,
    EventFlow,
    Identity,
    Job,
    JobContext,
    RetryPolicy,
    Services,
    StandaloneCommand,
    applies,
)
from tests.support.journal import query

CREATE_OWN_ROWS = "CREATE TABLE own_row (source_id text NOT NULL); GRANT SELECT, INSERT ON own_row TO PUBLIC"


class LedgerId(Identity):
    """A ledger."""


class Deposited(Event):
    amount: int


class Ledger(Aggregate[LedgerId]):
    balance: int = 0

    def deposit(self, amount: int) -> None:
        if amount <= 0:
            raise DomainError("only deposits")
        self.emit(Deposited(amount=amount))

    @applies
    def _deposited(self, event: Deposited) -> None:
        self.balance += event.amount


class Deposit(Command[LedgerId, int]):
    """
    Deposits, and returns the balance.

    Attributes:
        waits: The handler waits at the gate, after it has done everything.
        writes: A row of its own in its transaction.
        announces: Schedules a follow-up job.
    """

    amount: int = 1
    waits: bool = False
    writes: bool = False
    announces: bool = False


class Remind(Command[LedgerId]):
    """Sets the deadline, after a delay; ``None``: cancels it."""

    seconds: float | None = None


class Overdue(Command[LedgerId]):
    """The deadline's command: a deposit of 100. It waits at the gate."""


class Announce(StandaloneCommand[int]):
    """Schedules a follow-up job, and nothing else. It waits at the gate."""


class FollowUp(Job):
    """Does nothing."""

    async def execute(self, context: JobContext) -> None:
        pass


class WriteRow(Job):
    """No command: a row of its own in the transaction of its completion. It waits at the gate after that."""

    async def execute(self, context: JobContext) -> None:
        await write_row(await context.transaction(), context.job_id)
        context.schedule(FollowUp())
        await (await context.services.aget(Gate)).passage()


class Gate:
    """
    Where handlers wait.

    Attributes:
        arrived: How many came to it.
        opened: They go on.
    """

    def __init__(self) -> None:
        self.arrived = 0
        self.opened = anyio.Event()

    async def passage(self) -> None:
        """Wait."""
        self.arrived += 1
        await self.opened.wait()

    @asynccontextmanager
    async def lifespan(self, services: Services) -> AsyncGenerator[None]:
        """Offers itself to handlers."""
        services.register_value(Gate, self)
        yield


def ledger_flow(gate: Gate) -> EventFlow:
    """A flow of all these."""
    flow = EventFlow("ledgers", lifespan=gate.lifespan)
    flow.job(FollowUp)
    flow.job(retry=RetryPolicy(max_attempts=1))(WriteRow)
    flow.command_handler(deposit)
    flow.command_handler(remind)
    flow.command_handler(overdue)
    flow.command_handler(announce)
    return flow


async def deposit(ledger: Ledger, command: Deposit, context: CommandContext) -> int:
    """Handles a deposit."""
    ledger.deposit(command.amount)
    if command.announces:
        context.schedule(FollowUp())
    if command.writes:
        await write_row(await context.transaction(), context.source_id)
    if command.waits:
        await (await context.services.aget(Gate)).passage()
    return ledger.balance


async def remind(ledger: Ledger, command: Remind, context: CommandContext) -> None:
    """Handles a reminder."""
    if command.seconds is None:
        context.cancel_deadline("overdue")
    else:
        context.schedule_deadline("overdue", Overdue(aggregate_id=ledger.id), delay=timedelta(seconds=command.seconds))


async def overdue(ledger: Ledger, command: Overdue, context: CommandContext) -> None:
    """Handles the deadline's command."""
    ledger.deposit(100)
    await (await context.services.aget(Gate)).passage()


async def announce(command: Announce, context: CommandContext) -> int:
    """Handles an announcement."""
    context.schedule(FollowUp())
    await (await context.services.aget(Gate)).passage()
    return 7


async def write_row(connection: Any, source_id: str) -> None:  # Any: what a transaction gives
    """A row of a handler's own."""
    await connection.execute("INSERT INTO own_row (source_id) VALUES ($1)", source_id)


async def amounts(admin_dsn: str, ledger_id: LedgerId) -> list[int]:
    """What was deposited, in order; versions are dense and ids single, or it fails."""
    rows = await query(
        admin_dsn,
        "SELECT stream_version, id, (data ->> 'amount')::integer AS amount FROM eventflow.event"
        " WHERE aggregate_name = 'Ledger' AND aggregate_id = $1 ORDER BY stream_version",
        ledger_id,
    )
    assert [row["stream_version"] for row in rows] == list(range(1, len(rows) + 1))
    assert len({row["id"] for row in rows}) == len(rows)
    return [row["amount"] for row in rows]


async def count(admin_dsn: str, table: str) -> int:
    """How many rows a table has."""
    [row] = await query(admin_dsn, f"SELECT count(*) FROM {table}")
    rows: int = row["count"]
    return rows


async def written(admin_dsn: str) -> tuple[int, int, int, int]:
    """How many events, receipts, follow-up jobs and rows of handlers' own there are."""
    follow_ups = "eventflow.any_job WHERE name = 'FollowUp'"
    tables = ("eventflow.event", "eventflow.command_receipt", follow_ups, "own_row")
    events, receipts, jobs, rows = [await count(admin_dsn, table) for table in tables]
    return events, receipts, jobs, rows


async def create_own_rows(admin_dsn: str) -> None:
    """The table of handlers' own rows."""
    connection = await asyncpg.connect(admin_dsn)
    await connection.execute(CREATE_OWN_ROWS)
    await connection.close()


async def take_all(admin_dsn: str) -> None:
    """Take all jobs from their workers, which hear nothing of it; they wait for an hour."""
    await query(
        admin_dsn,
        "DO $$ BEGIN PERFORM eventflow.release_claims(worker_id, true) FROM eventflow.running;"
        " UPDATE eventflow.job SET ready_at = ready_at + interval '1 h'; END $$",
    )
