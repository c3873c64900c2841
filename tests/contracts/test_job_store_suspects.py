"""The job store's contract: jobs that were held by several workers when they died."""

from datetime import timedelta

import pytest

from eventflow.clock import to_microseconds
from eventflow.errors import LeaseLostError
from eventflow.ids import JobId
from eventflow.jobs import CancelOutcome, ClaimedJob, Interest, JobState, Outcome
from tests.support.job_stores import ERROR, StoreDriver, after, interest

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


async def die_holding(driver: StoreDriver, *jobs: JobId, times: int = 1) -> None:
    """So many workers, one after the other, claim these jobs and nothing else, and are rescued."""
    for _ in range(times):
        worker = await driver.open_worker()
        held = await driver.claim(worker) or (await driver.store.claim_suspect(worker, driver.wants)).jobs
        assert {claim.id for claim in held} == set(jobs)
        assert await driver.store.rescue(await driver.peer(worker)) == len(jobs)


async def claim_suspect(driver: StoreDriver, wants: Interest | None = None) -> list[ClaimedJob]:
    """The claim of a new worker."""
    return list((await driver.store.claim_suspect(await driver.open_worker(), wants or driver.wants)).jobs)


async def suspect(driver: StoreDriver, **given: object) -> JobId:
    """A job that two workers died of."""
    job_id = await driver.insert(**given)
    await die_holding(driver, job_id, times=2)
    return job_id


async def test_second_death_makes_a_job_suspect(driver: StoreDriver) -> None:
    """After one it is claimed like any other; after two by no ordinary claim, ahead of time or not."""
    job_id = await driver.insert()
    await die_holding(driver, job_id)
    assert (await driver.get(job_id)).parked is None
    await die_holding(driver, job_id)
    record = await driver.get(job_id)
    assert (record.state, record.parked, record.crashes, record.attempt) == (JobState.WAITING, "suspect", 2, 0)

    worker = await driver.open_worker()
    batch = await driver.store.claim(worker, driver.wants, ready=9, ahead=9, horizon_us=10**9, parked=True)
    assert (batch.jobs, batch.next_us) == ([], None)
    tick = await driver.store.tick(worker, driver.wants)
    assert (tick.next_us, tick.parked, tick.blocked) == (None, False, False)
    assert record.ready_at is not None
    assert tick.suspect_us == to_microseconds(record.ready_at)
    [claim] = await claim_suspect(driver)
    assert (claim.id, claim.crashes, claim.attempt, claim.claim_no) == (job_id, 2, 1, 3)
    assert (await driver.store.tick(worker, driver.wants)).suspect_us is None


async def test_suspects_are_taken_one_at_a_time_the_most_urgent_first(driver: StoreDriver) -> None:
    """By priority, then by who is ready longer, whatever their names; and nothing else with them."""
    long_ready = await suspect(driver, name="Print")
    await driver.advance(SECOND)
    short_ready = await suspect(driver, name="Send")
    await driver.advance(SECOND)
    urgent = await suspect(driver, name="Print", priority=0)
    await driver.insert()

    taken = [[claim.id for claim in await claim_suspect(driver)] for _ in range(4)]
    assert taken == [[urgent], [long_ready], [short_ready], []]


async def test_only_who_knows_a_suspect_and_serves_its_queue_takes_it(driver: StoreDriver) -> None:
    """To others the tick does not show it."""
    await suspect(driver, name="Print", queue="mail")

    for wants in (interest(("default",)), interest(("mail",), names=("Send",))):
        assert await claim_suspect(driver, wants) == []
        assert (await driver.store.tick(await driver.open_worker(), wants)).suspect_us is None
    assert len(await claim_suspect(driver, interest(("mail",), names=("Print",)))) == 1


async def test_suspect_is_not_taken_before_it_is_ready(driver: StoreDriver) -> None:
    """A retry's backoff holds; its wait counts from then."""
    job_id = await suspect(driver)
    worker = await driver.open_worker()
    [claim] = (await driver.store.claim_suspect(worker, driver.wants)).jobs
    await driver.settle(worker, claim, Outcome.RETRY, error=ERROR, due=after(HOUR))

    assert await claim_suspect(driver) == []
    assert (await driver.store.tick(worker, driver.wants)).suspect_us is None
    await driver.advance(HOUR + SECOND)
    tick = await driver.store.tick(worker, driver.wants)
    assert tick.suspect_us is not None
    assert SECOND / 2 < timedelta(microseconds=tick.now_us - tick.suspect_us) < HOUR / 2
    assert [claim.id for claim in await claim_suspect(driver)] == [job_id]


@pytest.mark.parametrize("ending", [Outcome.RETRY, Outcome.RELEASED, None])
async def test_suspect_stays_one_until_it_has_ended(driver: StoreDriver, ending: Outcome | None) -> None:
    """A retry, a release, and a worker that leaves in good order count no crash and clear nobody."""
    job_id = await suspect(driver)
    worker = await driver.open_worker()
    [claim] = (await driver.store.claim_suspect(worker, driver.wants)).jobs
    if ending is None:
        await driver.store.close_worker(worker)
    else:
        await driver.settle(worker, claim, ending, error=ERROR if ending is Outcome.RETRY else None)
    record = await driver.get(job_id)

    assert (record.parked, record.crashes) == ("suspect", 2)
    assert record.attempt == (1 if ending is Outcome.RETRY else 0)
    assert [claim.crashes for claim in await claim_suspect(driver)] == [2]


async def test_fifth_death_is_the_last(driver: StoreDriver) -> None:
    """Each gives the attempt back and is noted; with the fifth the job becomes a dead letter."""
    job_id = await driver.insert()
    for deaths in range(1, 5):
        await die_holding(driver, job_id)
        record = await driver.get(job_id)
        assert (record.state, record.crashes, record.attempt) == (JobState.WAITING, deaths, 0)
    await die_holding(driver, job_id)
    record = await driver.get(job_id)

    assert (record.state, record.reason, record.crashes) == (JobState.DEAD, "worker_died", 5)
    assert (record.claim_no, record.parked) == (5, None)
    assert record.error is not None
    assert record.error["type"] == "WorkerDied"
    assert [(a["attempt"], a["outcome"]) for a in record.past_attempts] == [(1, "worker_died")] * 5
    assert await claim_suspect(driver) == []


async def test_deaths_are_counted_for_each_job_alone(driver: StoreDriver) -> None:
    """Those who were beside it twice are suspects with it, and no more once it dies alone."""
    killer, beside = await driver.insert(), await driver.insert()
    await die_holding(driver, killer, beside, times=2)
    worker = await driver.open_worker()
    [claim] = (await driver.store.claim_suspect(worker, driver.wants)).jobs
    await driver.store.rescue(await driver.peer(worker))
    crashes = {job_id: (await driver.get(job_id)).crashes for job_id in (killer, beside)}

    assert crashes == {killer: 2, beside: 2} | {claim.id: 3}


async def test_cancelled_job_ends_cancelled_at_its_fifth_death(driver: StoreDriver) -> None:
    """What was promised to who cancelled it holds."""
    job_id = await driver.insert()
    await die_holding(driver, job_id, times=4)
    worker = await driver.open_worker()
    await driver.store.claim_suspect(worker, driver.wants)
    assert await driver.store.cancel(job_id) is CancelOutcome.REQUESTED
    assert await driver.store.rescue(await driver.peer(worker)) == 1

    assert (await driver.get(job_id)).state is JobState.CANCELLED


async def test_waiting_suspect_is_cancelled_at_once(driver: StoreDriver) -> None:
    """As any job that waits."""
    job_id = await suspect(driver)

    assert await driver.store.cancel(job_id) is CancelOutcome.CANCELLED
    record = await driver.get(job_id)
    assert (record.state, record.parked, record.crashes) == (JobState.CANCELLED, None, 2)
    assert await claim_suspect(driver) == []


async def test_worker_without_a_lease_takes_no_suspect(driver: StoreDriver) -> None:
    """It is told so, and the job stays for others."""
    job_id = await suspect(driver)
    closed = await driver.open_worker()
    await driver.store.close_worker(closed)

    with pytest.raises(LeaseLostError):
        await driver.store.claim_suspect(closed, driver.wants)
    assert [claim.id for claim in await claim_suspect(driver)] == [job_id]


async def test_turns_last_as_long_as_a_suspect_may_need(driver: StoreDriver) -> None:
    """Of the workers that see it one has the turn, and keeps it until its jobs may have ended, not for a second."""
    await suspect(driver)
    crew = [await driver.open_worker() for _ in range(3)]
    await driver.advance(timedelta(days=30))
    turns: list[list[bool]] = []
    until = await driver.now() + 1.2 * SECOND
    while await driver.now() < until:
        turns.append([(await driver.store.tick(worker, driver.wants)).my_turn for worker in crew])
        await driver.advance(SECOND / 4)

    assert sorted(turns[0]) == [False, False, True]
    assert turns == [turns[0]] * len(turns)
