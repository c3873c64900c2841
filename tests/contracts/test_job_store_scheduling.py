"""The job store's contract, from the side of schedulers: insert, cancel, reschedule, look up."""

from datetime import timedelta

import msgspec
import pytest

from eventflow.clock import to_microseconds
from eventflow.errors import DatabaseError
from eventflow.ids import JobId
from eventflow.jobs import CancelOutcome, JobState, Outcome, RescheduleOutcome
from eventflow.scheduling import Due
from tests.support.job_stores import ERROR, StoreDriver, after, new_job

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
SOON = timedelta(seconds=30)


async def test_inserted_job_is_found_as_it_was_given(driver: StoreDriver) -> None:
    """Every field of a job is there when it is looked up."""
    job = new_job(
        queue="mail",
        priority=2,
        due=after(HOUR),
        headers=b'{"correlation_id":"c"}',
        key="customer-7",
        tags=("a", 'with "quotes", \\ and {braces}'),
        aggregate_id="order-1",
    )
    before = await driver.now()
    await driver.store.insert([job])
    record = await driver.get(job.id)

    assert (record.state, record.name, record.version) == (JobState.WAITING, "Send", 1)
    assert (record.queue, record.priority, record.key) == ("mail", 2, "customer-7")
    assert (record.tags, record.aggregate_id) == (job.tags, "order-1")
    assert (record.payload, record.headers) == ({"to": "me"}, {"correlation_id": "c"})
    assert (record.attempt, record.crashes, record.claim_no, list(record.past_attempts)) == (0, 0, 0, [])
    assert (record.worker_id, record.started_at, record.ended_at, record.error) == (None, None, None, None)
    assert before <= record.created_at <= await driver.now()
    assert record.due_at - record.created_at == HOUR
    assert record.ready_at == record.due_at


async def test_claimed_job_carries_what_its_worker_needs(driver: StoreDriver) -> None:
    """Payload, headers, retry numbers and timeout reach the worker as they were given."""
    worker = await driver.open_worker()
    await driver.insert(retry=b'{"max_attempts":3}', timeout_us=5_000_000, headers=b'{"correlation_id":"c"}')
    claim = await driver.claim_one(worker)

    assert (claim.name, claim.version, claim.timeout_us) == ("Send", 1, 5_000_000)
    assert msgspec.json.decode(claim.payload) == {"to": "me"}
    assert msgspec.json.decode(claim.headers or "") == {"correlation_id": "c"}
    assert msgspec.json.decode(claim.retry or "") == {"max_attempts": 3}


async def test_insert_adds_all_jobs_or_none(driver: StoreDriver) -> None:
    """One job that the store refuses keeps the others out."""
    present, good = await driver.insert(), new_job()
    with pytest.raises(DatabaseError):
        await driver.store.insert([good, new_job(id=present)])

    assert await driver.store.get(good.id) is None


@pytest.mark.parametrize("count", [1, 20, 400])
async def test_many_jobs_are_inserted_at_once(driver: StoreDriver, count: int) -> None:
    """However many there are, each has its own due time, the delays counted from one instant."""
    jobs = [new_job(due=after(number * MINUTE)) for number in range(count)]
    await driver.store.insert(jobs)
    found = {record.id: record for record in await driver.store.find(limit=count)}

    assert found.keys() == {job.id for job in jobs}
    start = found[jobs[0].id].due_at
    assert [found[job.id].due_at - start for job in jobs] == [number * MINUTE for number in range(count)]


async def test_delay_counts_from_the_insert(driver: StoreDriver) -> None:
    """A job with a delay is claimable once it has passed by the store's clock, and not before."""
    worker = await driver.open_worker()
    job_id = await driver.insert(due=after(HOUR))

    await driver.advance(HOUR - SOON)
    assert await driver.claim_ids(worker) == []
    await driver.advance(SOON)
    assert await driver.claim_ids(worker) == [job_id]


async def test_job_at_an_instant_waits_for_it(driver: StoreDriver) -> None:
    """A job with an instant is claimable from then on."""
    worker = await driver.open_worker()
    at_us = to_microseconds(await driver.now() + HOUR)
    job_id = await driver.insert(due=Due(at_us=at_us))

    await driver.advance(HOUR - SOON)
    assert await driver.claim_ids(worker) == []
    await driver.advance(SOON)
    assert await driver.claim_ids(worker) == [job_id]


async def test_due_time_in_the_past_means_now(driver: StoreDriver) -> None:
    """Nothing becomes claimable in the past: the due time is kept, the job is ready when inserted."""
    worker = await driver.open_worker()
    now = await driver.now()
    await driver.insert(due=Due(at_us=to_microseconds(now - HOUR)))
    claim = await driver.claim_one(worker)

    assert claim.due_us == to_microseconds(now - HOUR)
    assert claim.ready_us >= to_microseconds(now)


async def test_cancelled_job_does_not_run(driver: StoreDriver) -> None:
    """A waiting job that is cancelled is never claimed, and kept as cancelled."""
    worker = await driver.open_worker()
    job_id = await driver.insert()

    assert await driver.store.cancel(job_id) is CancelOutcome.CANCELLED
    assert await driver.claim(worker) == []
    record = await driver.get(job_id)
    assert (record.state, record.claim_no) == (JobState.CANCELLED, 0)
    assert record.ended_at is not None


async def test_worker_of_a_claimed_job_is_asked_to_cancel_it(driver: StoreDriver) -> None:
    """Cancelling a claimed job sends its holder, and nobody else, a signal; repeating it sends no second one."""
    worker, other = await driver.open_worker(), await driver.open_worker()
    job_id = await driver.insert()
    claim = await driver.claim_one(worker)

    assert await driver.store.cancel(job_id) is CancelOutcome.REQUESTED
    assert await driver.store.cancel(job_id) is CancelOutcome.REQUESTED
    [signal] = (await driver.store.tick(worker, driver.wants)).signals
    assert (signal.job_id, signal.claim_no, signal.kind, signal.due_us) == (job_id, claim.claim_no, "cancel", None)
    assert (await driver.store.tick(other, driver.wants)).signals == []
    assert (await driver.get(job_id)).state is JobState.RUNNING


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.RETRY, Outcome.RELEASED, Outcome.DEAD])
async def test_signal_ends_with_the_claim(driver: StoreDriver, outcome: Outcome) -> None:
    """What was asked of a claim is not asked of the next."""
    worker = await driver.open_worker()
    job_id = await driver.insert()
    claim = await driver.claim_one(worker)
    await driver.store.cancel(job_id)
    await driver.settle(worker, claim, outcome, error=ERROR)

    assert (await driver.store.tick(worker, driver.wants)).signals == []


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.CANCELLED, Outcome.DEAD])
async def test_ended_job_can_be_neither_cancelled_nor_rescheduled(driver: StoreDriver, outcome: Outcome) -> None:
    """A job that has ended stays what it is."""
    worker = await driver.open_worker()
    job_id = await driver.insert()
    await driver.settle(worker, await driver.claim_one(worker), outcome, error=ERROR)
    ended = await driver.get(job_id)

    assert await driver.store.cancel(job_id) is CancelOutcome.NOT_FOUND
    assert await driver.store.reschedule(job_id, after(HOUR)) is RescheduleOutcome.NOT_FOUND
    assert await driver.get(job_id) == ended


async def test_unknown_job_is_not_found(driver: StoreDriver) -> None:
    """A job that never was can be neither looked up nor changed."""
    assert await driver.store.get(JobId.new()) is None
    assert await driver.store.cancel(JobId.new()) is CancelOutcome.NOT_FOUND
    assert await driver.store.reschedule(JobId.new(), after(HOUR)) is RescheduleOutcome.NOT_FOUND


async def test_rescheduled_job_runs_at_its_new_time(driver: StoreDriver) -> None:
    """A waiting job moves later and earlier; a time in the past means now."""
    worker = await driver.open_worker()
    job_id = await driver.insert()

    assert await driver.store.reschedule(job_id, after(HOUR)) is RescheduleOutcome.RESCHEDULED
    assert await driver.claim(worker) == []
    await driver.advance(HOUR)
    assert await driver.store.reschedule(job_id, after(2 * HOUR)) is RescheduleOutcome.RESCHEDULED
    assert await driver.claim(worker) == []
    now = await driver.now()
    await driver.store.reschedule(job_id, Due(at_us=to_microseconds(now - HOUR)))
    claim = await driver.claim_one(worker)
    assert (claim.id, claim.due_us) == (job_id, to_microseconds(now - HOUR))
    assert claim.ready_us >= to_microseconds(now)


async def test_worker_of_a_claimed_job_is_asked_to_reschedule_it(driver: StoreDriver) -> None:
    """The signal carries the new due time; asking again replaces it."""
    worker = await driver.open_worker()
    job_id = await driver.insert()
    await driver.claim_one(worker)
    at_us = to_microseconds(await driver.now() + HOUR)
    await driver.store.reschedule(job_id, after(HOUR))

    assert await driver.store.reschedule(job_id, Due(at_us=at_us)) is RescheduleOutcome.REQUESTED
    [signal] = (await driver.store.tick(worker, driver.wants)).signals
    assert (signal.job_id, signal.kind, signal.due_us) == (job_id, "reschedule", at_us)


@pytest.mark.parametrize("way", ["released", "closed", "rescued"])
async def test_claimed_job_given_back_waits_for_the_time_it_was_asked_to(driver: StoreDriver, way: str) -> None:
    """Whoever asked was told that the worker was: its end before it read that must not lose the request."""
    worker, other = await driver.open_worker(), await driver.open_worker()
    job_id = await driver.insert()
    claim = await driver.claim_one(worker)
    due_at = await driver.now() + HOUR
    await driver.store.reschedule(job_id, Due(at_us=to_microseconds(due_at)))
    if way == "released":
        await driver.settle(worker, claim, Outcome.RELEASED)
    elif way == "closed":
        await driver.store.close_worker(worker)
    else:
        await driver.store.rescue(await driver.peer(worker))

    assert (await driver.get(job_id)).due_at == due_at
    assert await driver.claim(other) == []
    await driver.advance(HOUR)
    assert await driver.claim_ids(other) == [job_id]


async def test_find_filters_and_shows_the_newest_first(driver: StoreDriver) -> None:
    """Jobs are found by state, queue and name, in every table, newest first and no more than asked for."""
    worker = await driver.open_worker()
    ended = [await driver.insert() for _ in range(3)]
    done, dead, running = await driver.claim(worker)
    await driver.settle(worker, done, Outcome.SUCCEEDED)
    await driver.settle(worker, dead, Outcome.DEAD, reason="error", error=ERROR)
    mail = await driver.insert(queue="mail", name="Print")
    last = await driver.insert(due=after(HOUR))

    async def found(**query: object) -> list[JobId]:
        return [record.id for record in await driver.store.find(**query)]  # type: ignore[arg-type]

    assert await found() == [last, mail, *reversed(ended)]
    assert await found(limit=2) == [last, mail]
    assert await found(state=JobState.WAITING) == [last, mail]
    assert await found(state=JobState.RUNNING) == [running.id]
    assert await found(state=JobState.SUCCEEDED) == [done.id]
    assert await found(state=JobState.DEAD) == [dead.id]
    assert await found(queue="mail") == [mail]
    assert await found(name="Print", state=JobState.WAITING) == [mail]
    assert await found(queue="nowhere") == []
