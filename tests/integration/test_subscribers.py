"""Jobs of subscribers on Postgres: they come with the append, and end with what they write."""

from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import timedelta
from uuid import UUID

import pytest

from eventflow import (
    EventFlow,
    JobId,
    JobState,
    RetryPolicy,
    SubscriberContext,
    WorkerSettings,
)
from tests.support.journal import ended, query
from tests.support.ledgers import (
    Deposit,
    Deposited,
    FollowUp,
    Gate,
    LedgerId,
    create_own_rows,
    ledger_flow,
    take_all,
    write_row,
    written,
)
from tests.support.waiting import eventually, until

LEDGER = LedgerId("ledger-0192f0c1-0000-7000-8000-000000000001")
ORDERED = pytest.mark.parametrize("ordered", [False, True], ids=["in any order", "ordered"])
LEFT = """
SELECT (SELECT count(*) FROM eventflow.event_line) + (SELECT count(*) FROM eventflow.running)
    + (SELECT count(*) FROM eventflow.job WHERE name LIKE 'Subscriber:%') AS left
"""


@pytest.fixture
async def gate(admin_dsn: str) -> AsyncGenerator[Gate]:
    """Where the subscriber waits after all that it does; there is a table for its rows."""
    await create_own_rows(admin_dsn)
    gate = Gate()
    yield gate
    gate.opened.set()


def with_subscriber(gate: Gate, *, ordered: bool, writes: bool = True, failures: int = 0) -> EventFlow:
    """Ledgers, and a subscriber that schedules a job, writes a row or not, and waits."""
    flow = ledger_flow(gate)

    @flow.subscriber(ordered=ordered, retry=RetryPolicy(base=timedelta(0)))
    async def audit(event: Deposited, context: SubscriberContext) -> None:
        context.schedule(FollowUp())
        if writes:
            await write_row(await context.transaction(), context.event_id)
        await (await context.services.aget(Gate)).passage()
        if context.attempt <= failures:
            raise ConnectionResetError

    return flow


async def jobs_of(admin_dsn: str, subscriber: str = "audit") -> list[JobId]:
    """The jobs of a subscriber, wherever they are."""
    rows = await query(admin_dsn, "SELECT id FROM eventflow.any_job WHERE name = $1", f"Subscriber:{subscriber}")
    return [JobId.of(str(row["id"])) for row in rows]


async def nothing_left(admin_dsn: str) -> None:
    """Wait until subscribers have nothing to do."""

    async def look() -> bool:
        [row] = await query(admin_dsn, LEFT)
        return bool(row["left"] == 0)

    await eventually(look)


@ORDERED
async def test_jobs_come_exactly_with_the_append(ordered: bool, dsn: str, admin_dsn: str, gate: Gate) -> None:
    """In the caller's transaction too: nobody sees them before its commit, and of one rolled back there are none."""
    async with with_subscriber(gate, ordered=ordered).open(dsn) as app:
        with suppress(ZeroDivisionError):
            async with app.transaction() as connection:
                await app.commands.publish(Deposit(aggregate_id=LEDGER), connection=connection)
                raise ZeroDivisionError
        [none] = await query(admin_dsn, LEFT)
        assert (none["left"], await jobs_of(admin_dsn)) == (0, [])

        async with app.transaction() as connection:
            await app.commands.publish(Deposit(aggregate_id=LEDGER), connection=connection)
            assert await jobs_of(admin_dsn) == []
        [job_id] = await jobs_of(admin_dsn)
        gate.opened.set()
        async with app.worker():
            record = await ended(app, job_id)
            await nothing_left(admin_dsn)
    assert record.payload["stream_version"] == 1
    assert gate.arrived == 1


async def test_waiting_worker_is_woken_by_the_append(
    dsn: str, admin_dsn: str, gate: Gate, only_when_woken: WorkerSettings
) -> None:
    """Also for the next in line, which a commit of its own has made."""
    gate.opened.set()
    async with with_subscriber(gate, ordered=True).open(dsn) as app, app.worker(only_when_woken):
        async with app.transaction() as connection:
            for _ in range(3):
                await app.commands.publish(Deposit(aggregate_id=LEDGER), connection=connection)
        await until(lambda: gate.arrived == 3)
        await app.commands.publish(Deposit(aggregate_id=LEDGER))
        await until(lambda: gate.arrived == 4)
        await nothing_left(admin_dsn)


@ORDERED
@pytest.mark.parametrize("writes", [False, True], ids=["one statement", "transaction"])
async def test_what_a_subscriber_writes_is_there_once_however_often_it_is_tried(
    ordered: bool, writes: bool, dsn: str, *, admin_dsn: str, gate: Gate
) -> None:
    """Its row and its job come with its success; failed attempts leave nothing."""
    gate.opened.set()
    async with with_subscriber(gate, ordered=ordered, writes=writes, failures=2).open(dsn) as app, app.worker():
        await app.commands.publish(Deposit(aggregate_id=LEDGER))
        [job_id] = await jobs_of(admin_dsn)
        record = await ended(app, job_id)
        await nothing_left(admin_dsn)
    assert (record.state, record.attempt, gate.arrived) == (JobState.SUCCEEDED, 3, 3)
    assert await written(admin_dsn) == (1, 1, 1, int(writes))


@ORDERED
@pytest.mark.parametrize("writes", [False, True], ids=["one statement", "transaction"])
async def test_worker_that_lost_the_job_writes_nothing(
    ordered: bool, writes: bool, dsn: str, *, admin_dsn: str, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither row nor job, nor a step in line; the next worker does it all, once."""
    async with with_subscriber(gate, ordered=ordered, writes=writes).open(dsn) as app, app.worker():
        await app.commands.publish(Deposit(aggregate_id=LEDGER))
        [job_id] = await jobs_of(admin_dsn)
        await until(lambda: gate.arrived == 1)
        await app.commands.publish(Deposit(aggregate_id=LEDGER))  # the next in line
        await until(lambda: gate.arrived == (1 if ordered else 2))
        await take_all(admin_dsn)  # their worker hears nothing of it
        gate.opened.set()
        await until(lambda: caplog.messages.count("claim.lost") == gate.arrived)
        assert (await written(admin_dsn))[2:] == (0, 0)
        lines = await query(admin_dsn, "SELECT job_id FROM eventflow.event_line")
        assert [line["job_id"] for line in lines] == [UUID(job_id.uuid)] * ordered

        for each in await jobs_of(admin_dsn):
            await app.jobs.reschedule(each, delay=timedelta(0))
        record = await ended(app, job_id)
        await nothing_left(admin_dsn)
    assert (record.state, record.attempt, record.claim_no) == (JobState.SUCCEEDED, 1, 2)
    assert await written(admin_dsn) == (2, 2, 2, 2 * writes)
