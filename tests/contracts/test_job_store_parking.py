"""The job store's contract: jobs that a worker cannot run stand in nobody's way, and wait for one that can."""

from datetime import timedelta

import pytest

from eventflow.ids import JobId, WorkerId
from eventflow.jobs import CancelOutcome, JobState, Outcome, RescheduleOutcome
from tests.support.job_stores import ERROR, StoreDriver, after, interest

HOUR = timedelta(hours=1)
OLD, NEW = interest(names=("Send",)), interest(names=("Send", "Print"))


async def take(driver: StoreDriver, worker: WorkerId, ready: int = 10, *, parked: bool = True) -> list[JobId]:
    """What a worker that knows both names claims."""
    batch = await driver.store.claim(worker, NEW, ready=ready, ahead=0, horizon_us=0, parked=parked)
    return [claim.id for claim in batch.jobs]


async def test_ready_jobs_that_a_worker_cannot_run_are_put_aside_once(driver: StoreDriver) -> None:
    """The tick tells that they stand in the way; put aside, they do not, and nobody puts them aside again."""
    worker = await driver.open_worker()
    unknown = await driver.insert(name="Print")
    newer = await driver.insert(version=2)
    known, later = await driver.insert(), await driver.insert(name="Print", due=after(HOUR))

    assert (await driver.store.tick(worker, OLD)).blocked
    assert await driver.store.park_unknown(OLD) == 2
    assert not (await driver.store.tick(worker, OLD)).blocked
    assert await driver.store.park_unknown(OLD) == 0
    parked = {job_id: (await driver.get(job_id)).parked for job_id in (unknown, newer, known, later)}
    assert parked == {unknown: "unknown", newer: "unknown", known: None, later: None}


async def test_only_jobs_of_the_own_queues_are_put_aside(driver: StoreDriver) -> None:
    """A worker judges no queue that it does not serve."""
    worker = await driver.open_worker()
    mail = interest(("mail",), names=("Send",))
    await driver.insert(name="Print")

    assert not (await driver.store.tick(worker, mail)).blocked
    assert await driver.store.park_unknown(mail) == 0


async def test_workers_that_know_them_take_them_by_priority(driver: StoreDriver) -> None:
    """Only if asked to; together with jobs that nobody put aside, the more urgent first."""
    worker = await driver.open_worker()
    urgent, usual, least = [await driver.insert(name="Print", priority=priority) for priority in (0, 1, 3)]
    await driver.store.park_unknown(OLD)
    between = await driver.insert(name="Print", priority=2)

    tick = await driver.store.tick(worker, NEW)
    assert (tick.parked, tick.blocked) == (True, False)
    assert await take(driver, worker, 1, parked=False) == [between]
    between = await driver.insert(name="Print", priority=2)
    assert [await take(driver, worker, 1) for _ in range(5)] == [[urgent], [usual], [between], [least], []]
    assert not (await driver.store.tick(worker, NEW)).parked


async def test_who_does_not_know_them_takes_none_of_those_put_aside(driver: StoreDriver) -> None:
    """Neither by another name nor from another queue; and none is shown to it."""
    worker = await driver.open_worker()
    await driver.insert(name="Print")
    await driver.store.park_unknown(OLD)

    for wants in (OLD, interest(("mail",), names=("Print",))):
        assert not (await driver.store.tick(worker, wants)).parked
        batch = await driver.store.claim(worker, wants, ready=9, ahead=9, horizon_us=10**9, parked=True)
        assert batch.jobs == []


async def test_job_put_aside_is_cancelled_and_rescheduled_like_any_other(driver: StoreDriver) -> None:
    """It waits; a new due time holds for those who take what was put aside too."""
    worker = await driver.open_worker()
    dropped, moved = await driver.insert(name="Print"), await driver.insert(name="Print")
    await driver.store.park_unknown(OLD)

    assert await driver.store.cancel(dropped) is CancelOutcome.CANCELLED
    assert await driver.store.reschedule(moved, after(HOUR)) is RescheduleOutcome.RESCHEDULED
    cancelled = await driver.get(dropped)
    assert (cancelled.state, cancelled.parked) == (JobState.CANCELLED, None)
    assert not (await driver.store.tick(worker, NEW)).parked
    assert await take(driver, worker) == []
    await driver.advance(HOUR)
    assert await take(driver, worker) == [moved]


@pytest.mark.parametrize("outcome", [Outcome.RETRY, Outcome.RELEASED])
async def test_job_that_was_taken_is_no_longer_aside(driver: StoreDriver, outcome: Outcome) -> None:
    """While it runs, and when it waits again: then any worker that knows it finds it without looking aside."""
    worker = await driver.open_worker()
    job_id = await driver.insert(name="Print")
    await driver.store.park_unknown(OLD)
    [claim] = (await driver.store.claim(worker, NEW, ready=1, ahead=0, horizon_us=0, parked=True)).jobs

    assert (await driver.get(job_id)).parked is None
    assert await driver.settle(worker, claim, outcome, error=ERROR if outcome is Outcome.RETRY else None)
    assert (await driver.get(job_id)).parked is None
    assert await take(driver, worker, parked=False) == [job_id]


async def test_suspects_are_not_put_aside_as_unknown(driver: StoreDriver) -> None:
    """A job that workers died of still runs alone, whoever came by meanwhile."""
    job_id = await driver.insert(name="Print")
    for _ in range(2):
        worker = await driver.open_worker()
        await take(driver, worker)
        await driver.store.rescue(await driver.peer(worker))

    assert await driver.store.park_unknown(OLD) == 0
    assert (await driver.get(job_id)).parked == "suspect"
