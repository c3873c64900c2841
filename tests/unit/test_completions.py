"""Ending claims: batches, doubts, refusals."""

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from eventflow import (
    CommitUnknownError,
    DatabaseError,
    DatabaseUnavailableError,
    JobId,
    JobState,
    LeaseLostError,
    ManualClock,
    WorkerId,
)
from eventflow.errors import ValueRefusedError
from eventflow.eventstore import Changes
from eventflow.jobs import InMemoryCommits, InMemoryJobStore, Outcome, Settlement, nothing_of
from eventflow.jobs.worker.completion import Completions
from eventflow.supervision import Supervisor
from tests.unit.bench import Bench, HastyClock, others_rest

ME = WorkerId.new()


class FailingStore(InMemoryJobStore):
    """An in-memory store whose settle can fail before or after it has written."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.batches: list[int] = []
        self.before: list[Exception] = []
        self.after: list[Exception] = []
        self.refused: set[JobId] = set()
        self.gate = anyio.Event()
        self.gate.set()

    async def settle(self, worker_id: WorkerId, settlements: Sequence[Settlement]) -> set[JobId]:
        self.batches.append(len(settlements))
        await self.gate.wait()
        if self.before:
            raise self.before.pop(0)
        if any(s.claim.id in self.refused and s.outcome is not Outcome.DEAD for s in settlements):
            raise ValueRefusedError("22P05: untranslatable character")
        settled = await super().settle(worker_id, settlements)
        if self.after:
            raise self.after.pop(0)
        return settled


class AwayCommits(InMemoryCommits):
    """
    Commits to a store that is away for long.

    Attributes:
        refusals: So many more.
    """

    refusals = 1_100

    async def commit(self, changes: Changes, *args: Any, **options: Any) -> None:
        if self.refusals:
            self.refusals -= 1
            raise DatabaseUnavailableError("no room on the disk")
        await super().commit(changes, *args, **options)


class Rig:
    """Completions over a failing store, with claimed jobs."""

    def __init__(self, batch: int = 500) -> None:
        self.store: FailingStore
        self.bench = Bench(store=self._make_store)
        self.completions = Completions(
            self.store,
            ME,
            commits=self.bench.commits,
            clock=self.bench.clock,
            rng=self.bench.rng,
            linger=0.002,
            batch=batch,
        )

    def _make_store(self, clock: ManualClock) -> FailingStore:
        self.store = FailingStore(clock)
        return self.store

    async def settlements(self, count: int) -> list[Settlement]:
        """Claim so many jobs, and say that they have succeeded."""
        claims = await self.bench.hold(count, ME)
        return [Settlement(claim=claim, outcome=Outcome.SUCCEEDED, retention_days=1) for claim in claims]

    async def states(self) -> set[JobState]:
        return {record.state for record in await self.store.find()}

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """Let it work, as in a worker."""
        supervisor = Supervisor(self.bench.clock, self.bench.rng, fatal=(LeaseLostError,))
        async with anyio.create_task_group() as group:
            group.start_soon(supervisor.repeat, "settle", self.completions.settle_step)
            await others_rest()
            yield
            group.cancel_scope.cancel()


async def test_lone_settlement_is_written_at_once() -> None:
    """An idle worker's job is ended without waiting for company."""
    rig = Rig()
    [settlement] = await rig.settlements(1)

    async with rig.open():
        rig.completions.add(settlement)
        await others_rest()

    assert rig.store.batches == [1]
    assert await rig.states() == {JobState.SUCCEEDED}


async def test_settlements_share_a_commit_up_to_the_batch() -> None:
    """What is there together is written together, in batches of at most the size set."""
    rig = Rig(batch=4)
    settlements = await rig.settlements(10)

    async with rig.open():
        for settlement in settlements:
            rig.completions.add(settlement)
        assert set(rig.completions.ids()) == {settlement.claim.id for settlement in settlements}
        assert await rig.completions.wait_until_empty(1)

    assert rig.store.batches == [4, 4, 2]
    assert list(rig.completions.ids()) == []
    assert await rig.states() == {JobState.SUCCEEDED}


async def test_busy_worker_waits_a_moment_for_company() -> None:
    """After a batch of several, the next settlement lingers for others to share its commit."""
    rig = Rig()
    settlements = await rig.settlements(5)

    async with rig.open():
        for settlement in settlements[:2]:
            rig.completions.add(settlement)
        await others_rest()
        rig.completions.add(settlements[2])
        await others_rest()
        assert rig.store.batches == [2]
        rig.completions.add(settlements[3])
        await others_rest()
        rig.bench.clock.advance(0.002)
        await others_rest()

    assert rig.store.batches == [2, 2]


async def test_commit_is_sent_again_however_long_the_store_is_away() -> None:
    """Also after more pauses than a number that doubles with each can count."""
    rig = Rig()
    [settlement] = await rig.settlements(1)
    commits = AwayCommits(rig.store, rig.bench.events)
    completions = Completions(
        rig.store, ME, commits=commits, clock=HastyClock(), rng=rig.bench.rng, linger=0.002, batch=500
    )

    await completions.end(settlement, nothing_of(settlement.claim.id), None)

    assert commits.refusals == 0
    assert await rig.states() == {JobState.SUCCEEDED}


async def test_failed_write_is_sent_again_in_order() -> None:
    """While the database is away nothing is forgotten; afterwards everything is written, the oldest first."""
    rig = Rig(batch=2)
    settlements = await rig.settlements(3)
    rig.store.before = [DatabaseUnavailableError("away"), DatabaseUnavailableError("away")]

    async with rig.open():
        for settlement in settlements:
            rig.completions.add(settlement)
        await others_rest()
        assert list(rig.completions.ids()) == [settlement.claim.id for settlement in settlements]
        assert await rig.states() == {JobState.RUNNING}
        await rig.bench.advance(2)

    assert rig.store.batches == [2, 2, 2, 1]
    assert await rig.states() == {JobState.SUCCEEDED}


async def test_write_with_a_lost_answer_is_sent_again_and_the_doubt_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A commit whose answer was lost is sent again; the fence lets it change nothing, and it is not called lost."""
    rig = Rig()
    [settlement] = await rig.settlements(1)
    rig.store.after = [DatabaseUnavailableError("connection reset")]

    with caplog.at_level(logging.WARNING, "eventflow.worker"):
        async with rig.open():
            rig.completions.add(settlement)
            await others_rest()
            await rig.bench.advance(1)
            assert await rig.completions.wait_until_empty(1)

    assert [record.getMessage() for record in caplog.records if record.name == "eventflow.worker"] == [
        "claim.end_unknown"
    ]
    assert await rig.states() == {JobState.SUCCEEDED}


async def test_settlement_of_a_lost_claim_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A job that another worker has taken is not ended by this one, and that is said."""
    rig = Rig()
    [settlement] = await rig.settlements(1)
    await rig.store.close_worker(ME)

    with caplog.at_level(logging.WARNING, "eventflow.worker"):
        async with rig.open():
            rig.completions.add(settlement)
            assert await rig.completions.wait_until_empty(1)

    assert [record.getMessage() for record in caplog.records] == ["claim.lost"]
    assert await rig.states() == {JobState.WAITING}


@pytest.mark.parametrize("count", [1, 4])
async def test_settlement_that_the_store_refuses_becomes_a_dead_letter(count: int) -> None:
    """One settlement that the store will not take does not hold up the others: that job is dead-lettered."""
    rig = Rig()
    settlements = await rig.settlements(count)
    refused = settlements[-1].claim.id
    rig.store.refused = {refused}

    async with rig.open():
        for settlement in settlements:
            rig.completions.add(settlement)
        assert await rig.completions.wait_until_empty(1)

    records = {record.id: record for record in await rig.store.find()}
    assert (records[refused].state, records[refused].reason) == (JobState.DEAD, "refused_by_store")
    assert {record.state for record in records.values() if record.id != refused} <= {JobState.SUCCEEDED}


@pytest.mark.parametrize("error", [CommitUnknownError(["job-1"]), DatabaseError("XX000")], ids=["unknown", "internal"])
async def test_other_errors_of_the_store_bury_nothing(error: DatabaseError) -> None:
    """An error that does not concern the values is no reason to bury a job that has succeeded."""
    rig = Rig()
    settlements = await rig.settlements(2)
    rig.store.before = [error]

    async with rig.open():
        for settlement in settlements:
            rig.completions.add(settlement)
        await rig.bench.advance(1)

    assert await rig.states() == {JobState.SUCCEEDED}


async def test_what_is_being_sent_is_not_empty() -> None:
    """Waiting for the end of writing includes what is on its way; it is bounded."""
    rig = Rig()
    [settlement] = await rig.settlements(1)
    rig.store.gate = anyio.Event()
    empty: list[bool] = []

    async def wait() -> None:
        empty.append(await rig.completions.wait_until_empty(5))

    async with rig.open(), anyio.create_task_group() as group:
        rig.completions.add(settlement)
        await others_rest()
        assert list(rig.completions.ids()) == [settlement.claim.id]
        group.start_soon(wait)
        await others_rest()
        rig.bench.clock.advance(5)
        await others_rest()
        assert empty == [False]
        group.start_soon(wait)
        await others_rest()
        rig.store.gate.set()

    assert empty == [False, True]


async def test_closed_worker_ends_its_completions() -> None:
    """A store that says the lease is gone ends the service: nothing is sent for ever."""
    rig = Rig()
    [settlement] = await rig.settlements(1)
    rig.store.before = [LeaseLostError("closed")]
    rig.completions.add(settlement)

    with pytest.raises(LeaseLostError):
        await Supervisor(rig.bench.clock, rig.bench.rng, fatal=(LeaseLostError,)).repeat(
            "settle", rig.completions.settle_step
        )
