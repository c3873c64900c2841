"""The job store's contract: who gets which jobs, and in which order."""

from datetime import timedelta

import anyio
import pytest

from eventflow.clock import to_microseconds
from eventflow.errors import LeaseLostError
from eventflow.ids import JobId, WorkerId
from eventflow.jobs import ClaimedJob, Interest, JobState, JobStore, Outcome
from eventflow.scheduling import Due
from tests.support.job_stores import ERROR, StoreDriver, after, interest, new_job

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


async def test_two_workers_never_hold_the_same_job(driver: StoreDriver) -> None:
    """Workers that claim at the same time, in small bites, share the jobs without overlap."""
    jobs = [new_job() for _ in range(200)]
    await driver.store.insert(jobs)
    claimed: list[ClaimedJob] = []

    async def claim_all(store: JobStore, worker: WorkerId) -> None:
        while batch := (await store.claim(worker, interest(), ready=7, ahead=0, horizon_us=0)).jobs:
            claimed.extend(batch)

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(claim_all, await driver.another_store(), await driver.open_worker())

    assert sorted(claim.id for claim in claimed) == sorted(job.id for job in jobs)


async def test_claimed_job_is_running_and_counted(driver: StoreDriver) -> None:
    """A claim counts a claim and an attempt, and shows who holds the job."""
    worker = await driver.open_worker()
    job_id = await driver.insert()
    claim = await driver.claim_one(worker)
    record = await driver.get(job_id)

    assert (claim.id, claim.claim_no, claim.attempt, claim.crashes) == (job_id, 1, 1, 0)
    assert (record.state, record.worker_id) == (JobState.RUNNING, worker)
    assert (record.claim_no, record.attempt) == (1, 1)
    assert await driver.claim(worker) == []


async def test_every_claim_has_a_higher_number(driver: StoreDriver) -> None:
    """The claim number grows with every claim, also where the attempt is given back."""
    worker = await driver.open_worker()
    await driver.insert()
    seen: list[tuple[int, int]] = []
    for outcome in (Outcome.RELEASED, Outcome.RETRY, Outcome.RELEASED, Outcome.RETRY):
        claim = await driver.claim_one(worker)
        seen.append((claim.claim_no, claim.attempt))
        await driver.settle(worker, claim, outcome, error=ERROR if outcome is Outcome.RETRY else None)

    assert seen == [(1, 1), (2, 1), (3, 2), (4, 2)]


async def test_higher_priority_goes_first_then_who_is_ready_longer(driver: StoreDriver) -> None:
    """A claim takes by priority, then by ready time, whatever the order of insertion."""
    worker = await driver.open_worker()
    now = await driver.now()
    ready_at = {  # (priority, minutes)
        (priority, minutes): await driver.insert(
            priority=priority, due=Due(at_us=to_microseconds(now + minutes * MINUTE))
        )
        for priority, minutes in [(3, 1), (1, 3), (0, 5), (1, 2), (0, 6), (2, 1)]
    }
    await driver.advance(HOUR)
    taken = [await driver.claim_ids(worker, 1) for _ in ready_at]

    assert taken == [[ready_at[place]] for place in sorted(ready_at)]


async def test_a_batch_takes_the_most_urgent_and_lists_them_by_time(driver: StoreDriver) -> None:
    """One claim of several takes by priority; the answer is in the order in which they became ready."""
    worker = await driver.open_worker()
    now = await driver.now()

    async def insert(priority: int, minutes: int) -> JobId:
        return await driver.insert(priority=priority, due=Due(at_us=to_microseconds(now + minutes * MINUTE)))

    late_but_urgent, early, _least = await insert(0, 9), await insert(1, 1), await insert(2, 2)
    await driver.advance(HOUR)

    assert await driver.claim_ids(worker, 2) == [early, late_but_urgent]


async def test_jobs_ready_at_once_are_taken_in_the_order_of_their_ids(driver: StoreDriver) -> None:
    """Ids grow with time, so jobs of one insert go first in, first out."""
    worker = await driver.open_worker()
    jobs = [new_job() for _ in range(6)]
    await driver.store.insert(list(reversed(jobs)))

    assert await driver.claim_ids(worker, 3) == [job.id for job in jobs[:3]]
    assert await driver.claim_ids(worker, 9) == [job.id for job in jobs[3:]]


async def test_unknown_names_and_versions_are_left_alone(driver: StoreDriver) -> None:
    """A job that the worker cannot run is not claimed, however long it is ready, and blocks nobody."""
    worker = await driver.open_worker()
    unknown, newer = await driver.insert(name="Unknown"), await driver.insert(version=2)
    known = await driver.insert()

    assert await driver.claim_ids(worker) == [known]
    for job_id in (unknown, newer):
        record = await driver.get(job_id)
        assert (record.state, record.claim_no) == (JobState.WAITING, 0)
    versions = Interest(None, ("Send", "Unknown"), (2, 1))  # pairs, not any combination
    assert await driver.claim_ids(worker, wants=versions) == [unknown, newer]


async def test_other_queues_are_left_alone(driver: StoreDriver) -> None:
    """A worker of some queues takes nothing from others; one of all queues takes everything."""
    worker = await driver.open_worker()
    mail, slow, default = [await driver.insert(queue=queue) for queue in ("mail", "slow", "default")]

    assert await driver.claim_ids(worker, wants=interest(("mail", "empty"))) == [mail]
    assert set(await driver.claim_ids(worker)) == {slow, default}


async def test_no_more_than_asked_for(driver: StoreDriver) -> None:
    """*ready* and *ahead* bound what is taken, each its own kind."""
    worker = await driver.open_worker()
    ready = [await driver.insert() for _ in range(3)]
    soon = [await driver.insert(due=after(minutes * MINUTE)) for minutes in (1, 2, 3)]

    assert await driver.claim_ids(worker, 0, horizon=HOUR) == []
    assert await driver.claim_ids(worker, 2, ahead=1, horizon=HOUR) == [*ready[:2], soon[0]]
    assert await driver.claim_ids(worker, 0, ahead=9, horizon=HOUR) == soon[1:]
    assert await driver.claim_ids(worker, 9) == ready[2:]


async def test_only_what_is_due_within_the_horizon_is_taken_ahead(driver: StoreDriver) -> None:
    """Ahead of time, but no further; the answer tells when the next one beyond is ready."""
    worker = await driver.open_worker()
    soon, late = await driver.insert(due=after(MINUTE)), await driver.insert(due=after(2 * MINUTE + 1.5 * SECOND))
    before = to_microseconds(await driver.now())
    batch = await driver.claim_batch(worker, ahead=9, horizon=2 * MINUTE)

    assert [claim.id for claim in batch.jobs] == [soon]
    assert batch.jobs[0].ready_us > batch.now_us >= before
    late_at = (await driver.get(late)).ready_at
    assert late_at is not None
    assert batch.next_us == to_microseconds(late_at)


async def test_nothing_is_next_when_nothing_waits_for_this_worker(driver: StoreDriver) -> None:
    """The next time concerns only jobs that the worker could claim."""
    worker = await driver.open_worker()
    await driver.insert(due=after(1.5 * SECOND), name="Unknown")
    await driver.insert(due=after(1.5 * SECOND), queue="mail")

    assert (await driver.claim_batch(worker, wants=interest(("default",)))).next_us is None
    assert (await driver.claim_batch(worker)).next_us is not None


async def test_worker_without_a_lease_claims_nothing(driver: StoreDriver) -> None:
    """A worker that was closed, or never registered, is told so and takes nothing."""
    closed = await driver.open_worker()
    await driver.store.close_worker(closed)
    job_id = await driver.insert()

    for worker in (closed, WorkerId.new()):
        with pytest.raises(LeaseLostError):
            await driver.claim(worker)
    assert (await driver.get(job_id)).claim_no == 0


async def test_claims_whose_answer_was_lost_are_found(driver: StoreDriver) -> None:
    """The store tells a worker which of its claims it does not know of, and nothing of other workers'."""
    worker, other = await driver.open_worker(), await driver.open_worker()
    await driver.insert()
    known = await driver.claim_one(worker)
    await driver.insert()
    lost = await driver.claim_one(worker)
    await driver.insert()
    await driver.claim_one(other)

    assert await driver.store.claims(worker, [known.id]) == [lost]
    assert list(await driver.store.claims(worker, [])) == [known, lost]
    assert await driver.store.claims(worker, [known.id, lost.id]) == []
    assert await driver.settle(worker, lost, Outcome.SUCCEEDED)
    assert await driver.store.claims(worker, [known.id]) == []
