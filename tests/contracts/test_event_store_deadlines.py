"""Deadlines: jobs that belong to a stream by name, replaced and cancelled with its events, and fired once."""

from datetime import timedelta

import pytest

from eventflow.errors import ClaimLostError, DeadlinePassedError, DuplicateOperationError, OptimisticConcurrencyError
from eventflow.eventstore import Deadline, StreamId
from eventflow.ids import JobId
from eventflow.jobs import Ending, JobState, Outcome, Settlement
from tests.support.event_stores import EventStores, changes, receipt, stream
from tests.support.job_stores import after, new_job

LATER = after(timedelta(hours=1))


async def set_deadline(stores: EventStores, of: StreamId, name: str = "payment") -> JobId:
    """Commit a job that is due later as the stream's deadline."""
    job = new_job(due=LATER)
    await stores.commits.commit(changes(of, deadlines={name: job.id}), [job])
    return job.id


async def fire(stores: EventStores, of: StreamId, *data: str, expected_version: int = 0) -> JobId:
    """Run the only job that is ready as the stream's deadline, and append what comes of it."""
    change = changes(of, *data, expected_version=expected_version, fires=Deadline(of, "payment"))
    return await stores.commit_in_job(change)


async def is_waiting(stores: EventStores, job_id: JobId) -> bool:
    """Whether a job is there and has not begun."""
    record = await stores.jobs.store.get(job_id)
    return record is not None and record.state is JobState.WAITING


async def test_a_deadline_fires_once(stores: EventStores) -> None:
    """Its job ends with the events that it appends, and is no deadline any more."""
    order = stream()
    job_id = await set_deadline(stores, order)
    await stores.jobs.advance(timedelta(hours=2))

    assert await fire(stores, order, '"cancelled"') == job_id

    assert await stores.load(order) == ['"cancelled"']
    assert (await stores.jobs.get(job_id)).state is JobState.SUCCEEDED
    await stores.jobs.insert()
    with pytest.raises(DeadlinePassedError):
        await fire(stores, order, '"again"', expected_version=1)


async def test_a_deadline_may_concern_another_stream_or_none(stores: EventStores) -> None:
    """What is done then need not be done to the aggregate that it belongs to; it fires once all the same."""
    for to in (stream(name="Payment"), None):
        order = stream()
        await set_deadline(stores, order)
        await stores.jobs.advance(timedelta(hours=2))
        change = changes(to, "1", fires=Deadline(order, "payment"))
        await stores.commit_in_job(change)
        await stores.jobs.insert()
        with pytest.raises(DeadlinePassedError) as refused:
            await stores.commit_in_job(changes(None, fires=Deadline(order, "payment")))

        assert refused.value.stream == order
        assert await stores.load(order) == []
        assert to is None or await stores.load(to) == ["1"]


async def test_a_deadline_that_is_set_again_replaces_the_one_before(stores: EventStores) -> None:
    """The job of the one before is gone; those of other names and other streams stay."""
    order, other = stream(), stream()
    reminder, others = await set_deadline(stores, order, "reminder"), await set_deadline(stores, other)
    first = await set_deadline(stores, order)
    second = await set_deadline(stores, order)

    assert await stores.jobs.store.get(first) is None
    for job_id in (second, reminder, others):
        assert await is_waiting(stores, job_id)


async def test_a_cancelled_deadline_is_gone(stores: EventStores) -> None:
    """With its job; cancelling it again, or one that never was, does nothing."""
    order = stream()
    job_id = await set_deadline(stores, order)
    for name in ("payment", "payment", "never"):
        await stores.commits.commit(changes(order, deadlines={name: None}))

    assert await stores.jobs.store.get(job_id) is None


async def test_several_deadlines_change_at_once(stores: EventStores) -> None:
    """Each by its name, with the events."""
    order, jobs = stream(), [new_job(due=LATER) for _ in range(3)]
    before = await set_deadline(stores, order, "cancelled"), await set_deadline(stores, order, "replaced")
    deadlines = {"cancelled": None, "replaced": jobs[0].id, "new": jobs[1].id}

    await stores.commits.commit(changes(order, "1", deadlines=deadlines), jobs)

    assert [await is_waiting(stores, job_id) for job_id in before] == [False, False]
    assert [await is_waiting(stores, job.id) for job in jobs] == [True, True, True]


@pytest.mark.parametrize("replaces", [True, False])
async def test_a_deadline_that_was_begun_learns_that_it_has_passed(stores: EventStores, replaces: bool) -> None:
    """It was replaced or cancelled while a worker held it: nothing of what it changes is written, nor its success."""
    order = stream("order-1")
    job_id = await set_deadline(stores, order)
    await stores.jobs.advance(timedelta(hours=2))
    worker = await stores.jobs.open_worker()
    claim = await stores.jobs.claim_one(worker)
    job = new_job(due=LATER)
    await stores.commits.commit(
        changes(order, deadlines={"payment": job.id if replaces else None}), [job] if replaces else []
    )

    ending = Ending(worker, Settlement(claim=claim, outcome=Outcome.SUCCEEDED, retention_days=1))
    change = changes(order, '"cancelled"', fires=Deadline(order, "payment"), receipt=receipt(order, "deadline"))
    with pytest.raises(DeadlinePassedError) as refused:
        await stores.commits.commit(change, [new_job()], ends=ending)

    assert (refused.value.stream, refused.value.name) == (order, "payment")
    assert await stores.load(order) == []
    assert (await stores.look(order, "deadline")).result is None
    assert (await stores.jobs.get(job_id)).state is JobState.RUNNING
    assert await is_waiting(stores, job.id) == replaces


async def test_a_deadline_fires_in_its_own_job_only(stores: EventStores) -> None:
    """Neither another job nor somebody without one can be the deadline, also where there is none."""
    order = stream()
    for fired in (order, stream()):
        with pytest.raises(DeadlinePassedError):
            await stores.commits.commit(changes(fired, "1", fires=Deadline(fired, "payment")))
    job_id = await set_deadline(stores, order)
    await stores.jobs.insert()
    with pytest.raises(DeadlinePassedError):
        await fire(stores, order, "1")

    assert await is_waiting(stores, job_id)
    assert await stores.load(order) == []


async def test_refused_changes_leave_deadlines_and_jobs(stores: EventStores) -> None:
    """Whatever they are refused for, the deadline before stays, and the job of the new one is not added."""
    order = stream()
    await stores.append(order, "1", receipt=receipt(order, "done"))
    job_id, job = await set_deadline(stores, order), new_job()

    with pytest.raises(OptimisticConcurrencyError):
        await stores.commits.commit(changes(order, "2", deadlines={"payment": job.id}), [job])
    with pytest.raises(DuplicateOperationError):
        await stores.commits.commit(changes(order, receipt=receipt(order, "done"), deadlines={"payment": None}), [job])

    assert await is_waiting(stores, job_id)
    assert await stores.jobs.store.get(job.id) is None


async def test_a_lost_claim_changes_nothing(stores: EventStores) -> None:
    """Neither events nor receipt nor jobs are written for a worker that does not hold the job any more."""
    order, job = stream(), new_job()
    await stores.jobs.insert()
    worker = await stores.jobs.open_worker()
    claim = await stores.jobs.claim_one(worker)
    await stores.jobs.store.close_worker(worker)

    ending = Ending(worker, Settlement(claim=claim, outcome=Outcome.SUCCEEDED, retention_days=1))
    change = changes(order, "1", receipt=receipt(order, "done"), deadlines={"payment": job.id})
    with pytest.raises(ClaimLostError):
        await stores.commits.commit(change, [job], ends=ending)

    assert await stores.load(order) == []
    assert (await stores.look(order, "done")).result is None
    assert await stores.jobs.store.get(job.id) is None
    assert await is_waiting(stores, claim.id)
