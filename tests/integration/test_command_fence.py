"""Who does not hold the job any more changes nothing; whose answer is lost finds out what is true."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import timedelta

import anyio
import pytest

from eventflow import (
    AnyCommand,
    App,
    CommitUnknownError,
    DuplicateOperationError,
    Job,
    JobState,
    PublishCommandJob,
    WorkerSettings,
)
from reliability.rig.proxy import Proxy
from reliability.rig.transitions import Transitions
from tests.support.journal import ended, query
from tests.support.ledgers import (
    Announce,
    Deposit,
    Gate,
    LedgerId,
    WriteRow,
    create_own_rows,
    ledger_flow,
    take_all,
    written,
)
from tests.support.waiting import eventually, until

ONCE = ["waiting", "running", "succeeded"]
Written = tuple[int, int, int, int]
"""Events, receipts, follow-up jobs, rows of handlers' own."""
NOTHING = (0, 0, 0, 0)
LEDGER = LedgerId("ledger-0192f0c1-0000-7000-8000-000000000001")


@pytest.fixture
async def gate(admin_dsn: str) -> AsyncGenerator[Gate]:
    """Where handlers wait; there is a table for what they write."""
    await create_own_rows(admin_dsn)
    gate = Gate()
    yield gate
    gate.opened.set()


HELD: dict[str, tuple[AnyCommand[int], Written]] = {
    "one statement": (Deposit(aggregate_id=LEDGER, waits=True, announces=True), (1, 1, 1, 0)),
    "transaction": (Deposit(aggregate_id=LEDGER, waits=True, announces=True, writes=True), (1, 1, 1, 1)),
    "no aggregate": (Announce(), (0, 1, 1, 0)),
}
"""Commands whose handlers wait before they return, and what they write."""
JOBS: dict[str, tuple[Job, Written]] = {
    **{name: (PublishCommandJob.create(command), effect) for name, (command, effect) in HELD.items()},
    "no command": (WriteRow(), (0, 0, 1, 1)),
}


@pytest.mark.parametrize(("job", "effect"), JOBS.values(), ids=JOBS.keys())
async def test_worker_that_lost_the_job_writes_nothing(
    job: Job, effect: Written, dsn: str, *, admin_dsn: str, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """The job was taken while its handler ran: neither events nor receipt, follow-ups, rows or completion are left."""
    async with ledger_flow(gate).open(dsn) as app, app.worker():
        job_id = await app.jobs.schedule(job)
        await until(lambda: gate.arrived)
        await take_all(admin_dsn)
        gate.opened.set()
        await until(lambda: "claim.lost" in caplog.messages)
        record = await app.jobs.get(job_id)

        assert record is not None
        assert (record.state, record.attempt, record.crashes) == (JobState.WAITING, 0, 1)
        assert await written(admin_dsn) == NOTHING

        await app.jobs.reschedule(job_id, delay=timedelta(0))
        record = await ended(app, job_id)
        assert (record.state, record.attempt, record.claim_no) == (JobState.SUCCEEDED, 1, 2)
        await eventually(lambda: _all_ended(admin_dsn))
    assert gate.arrived == 2
    assert await written(admin_dsn) == effect


@pytest.mark.parametrize(("command", "effect"), HELD.values(), ids=HELD.keys())
async def test_command_in_two_jobs_at_the_same_time_is_done_once(
    command: AnyCommand[int], effect: Written, dsn: str, admin_dsn: str, gate: Gate
) -> None:
    """
    Both handlers have run, in two workers, before the first of them commits.

    Both jobs succeed. What is there is the first one's: the other leaves no follow-up job and no row of its own either.
    """
    one_at_a_time = WorkerSettings(concurrency=1)
    async with (
        ledger_flow(gate).open(dsn) as here,
        ledger_flow(gate).open(dsn) as there,
        here.worker(one_at_a_time),
        there.worker(one_at_a_time),
    ):
        jobs = [await here.commands.schedule(command) for _ in range(2)]
        await until(lambda: gate.arrived == 2)
        gate.opened.set()
        records = [await ended(here, job_id) for job_id in jobs]
        await eventually(lambda: _all_ended(admin_dsn))
    assert [(record.state, record.attempt) for record in records] == [(JobState.SUCCEEDED, 1)] * 2
    assert await written(admin_dsn) == effect


async def _all_ended(admin_dsn: str) -> bool:
    [row] = await query(
        admin_dsn, "SELECT (SELECT count(*) FROM eventflow.job) + (SELECT count(*) FROM eventflow.running) AS left"
    )
    return row["left"] == 0


# What is true after an answer was lost

SUM = 4711
MARKER = b'"amount":4711'
"""Only what is sent to commit a :func:`lost` has it."""
WITH_THE_LAST = """
SELECT count(*) FROM eventflow.event WHERE xid = (SELECT xid FROM eventflow.event WHERE data ->> 'amount' = '4711')
"""
LAST = {"one statement": MARKER, "transaction": b"COMMIT;"}


def lost(way: str) -> Deposit:
    """A command that commits in one of two ways."""
    return Deposit(aggregate_id=LEDGER, amount=SUM, announces=True, writes=way == "transaction")


def effect(way: str) -> Written:
    """What it writes."""
    return (1, 1, 1, int(way == "transaction"))


@pytest.fixture
async def proxy(dsn: str) -> Proxy:
    """Between applications and the server."""
    return Proxy(dsn)


@pytest.mark.parametrize("way", LAST)
async def test_caller_whose_answer_is_lost_learns_that_it_was_done(
    way: str, proxy: Proxy, admin_dsn: str, gate: Gate
) -> None:
    """The receipt shows it: publish returns the result, and everything is there once."""
    async with proxy.serve() as address, ledger_flow(gate).open(address) as app:
        new = await _warm_up(app, admin_dsn, way)
        proxy.cut_after(LAST[way])
        assert await app.commands.publish(lost(way)) == SUM
    assert proxy.cuts == 1
    assert await new() == effect(way)


async def test_callers_whose_commits_were_one_learn_each_of_their_own(
    dsn: str, proxy: Proxy, admin_dsn: str, gate: Gate
) -> None:
    """Commits of commands that end at the same time share a transaction, and so a lost answer."""
    amounts = (1, 2, 3, 4, 5, 6, 7, SUM)
    commands = [Deposit(aggregate_id=LedgerId.new(), amount=n, waits=True, announces=True) for n in amounts]
    results: list[int] = []

    async with proxy.serve() as address, ledger_flow(gate).open(address) as app:

        async def publish(command: Deposit) -> None:
            results.append(await app.commands.publish(command))

        new = await _warm_up(app, admin_dsn, "one statement")
        async with anyio.create_task_group() as group:
            for command in commands:
                group.start_soon(publish, command)
            await until(lambda: gate.arrived == len(commands))
            proxy.cut_after(MARKER)  # the last one goes with those that wait too
            gate.opened.set()
    assert proxy.cuts == 1
    assert sorted(results) == list(amounts)
    assert await new() == (8, 8, 8, 0)
    [shared] = await query(admin_dsn, WITH_THE_LAST)
    assert shared["count"] > 1


@pytest.mark.parametrize("way", LAST)
async def test_caller_whose_commit_is_under_way_is_not_told_that_nothing_was_written(
    way: str, proxy: Proxy, admin_dsn: str, gate: Gate
) -> None:
    """Nobody can know: it arrives later. To publish the same command again is safe."""
    command = lost(way)
    async with proxy.serve() as address, ledger_flow(gate).open(address) as app:
        new = await _warm_up(app, admin_dsn, way)
        proxy.cut_before(LAST[way])
        with pytest.raises(CommitUnknownError):
            await app.commands.publish(command)
        assert await new() == NOTHING
        await proxy.deliver()

        async def has_arrived() -> bool:
            return await new() == effect(way)

        await eventually(has_arrived)
        with pytest.raises(DuplicateOperationError) as raised:
            await app.commands.publish(command)
    assert raised.value.result == SUM
    assert await new() == effect(way)


@pytest.mark.parametrize("arrives", [True, False], ids=["answer lost", "commit lost"])
@pytest.mark.parametrize("way", LAST)
async def test_commit_of_a_job_without_an_answer_is_repeated_and_changes_nothing(
    way: str, arrives: bool, dsn: str, *, proxy: Proxy, admin_dsn: str, gate: Gate, transitions: Transitions
) -> None:
    """Whether the first arrives before the second or long after it: all is there once, and the job ended once."""
    flow = ledger_flow(gate)
    async with flow.open(dsn) as watching, proxy.serve() as address, flow.open(address) as app, app.worker():
        new = await _warm_up(app, admin_dsn, way, in_job=True)
        (proxy.cut_after if arrives else proxy.cut_before)(LAST[way])
        job_id = await watching.commands.schedule(lost(way))
        await until(lambda: proxy.cuts == 1)
        if arrives or way == "one statement":
            await ended(watching, job_id)
        await proxy.deliver()
        record = await ended(watching, job_id)
        await eventually(lambda: _all_ended(admin_dsn))
    assert (record.state, record.attempt, record.crashes) == (JobState.SUCCEEDED, 1, 0)
    assert await transitions.states(job_id) == ONCE
    assert await new() == effect(way)


async def _warm_up(app: App, admin_dsn: str, way: str, *, in_job: bool = False) -> Callable[[], Awaitable[Written]]:
    """Make every statement known to the server once, so that what follows is one message; tells what is new since."""
    command = Deposit(aggregate_id=LedgerId.new(), writes=way == "transaction", announces=True)
    if in_job:
        await ended(app, await app.commands.schedule(command))
        await eventually(lambda: _all_ended(admin_dsn))
    else:
        await app.commands.publish(command)
    before = await written(admin_dsn)

    async def new() -> Written:
        events, receipts, jobs, rows = (now - then for now, then in zip(await written(admin_dsn), before, strict=True))
        return events, receipts, jobs, rows

    return new
