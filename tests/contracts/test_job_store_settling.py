"""The job store's contract: how claims end, and that only their holder ends them."""

from datetime import timedelta

import msgspec
import pytest

from eventflow.clock import to_microseconds
from eventflow.errors import DatabaseError
from eventflow.ids import JobId
from eventflow.jobs import JobState, Outcome, Settlement
from eventflow.scheduling import Due
from tests.support.job_stores import ERROR, StoreDriver, after, instant_of, new_job

HOUR = timedelta(hours=1)
ENDINGS = {
    Outcome.SUCCEEDED: JobState.SUCCEEDED,
    Outcome.IGNORED: JobState.IGNORED,
    Outcome.CANCELLED: JobState.CANCELLED,
    Outcome.DEAD: JobState.DEAD,
}


@pytest.mark.parametrize("outcome", ENDINGS)
async def test_ended_job_is_kept_and_never_claimed_again(driver: StoreDriver, outcome: Outcome) -> None:
    """A claim that ends for good leaves the job in its history, with its last worker and times."""
    worker = await driver.open_worker()
    job_id = await driver.insert()
    claim = await driver.claim_one(worker)
    started_at = await driver.now()

    assert await driver.settle(worker, claim, outcome, started_us=to_microseconds(started_at), error=ERROR)
    record = await driver.get(job_id)
    assert record.state is ENDINGS[outcome]
    assert (record.attempt, record.claim_no, record.worker_id) == (1, 1, worker)
    assert record.ended_at is not None
    assert started_at <= record.ended_at <= await driver.now()
    assert await driver.claim(worker) == []


async def test_job_without_retention_is_forgotten(driver: StoreDriver) -> None:
    """Retention 0: nothing is kept of a job that succeeded."""
    worker = await driver.open_worker()
    job_id = await driver.insert()

    assert await driver.settle(worker, await driver.claim_one(worker), Outcome.SUCCEEDED, retention_days=0)
    assert await driver.store.get(job_id) is None


async def test_dead_letter_is_kept_whatever_the_retention(driver: StoreDriver) -> None:
    """A dead letter keeps its payload, error, reason and attempts until somebody decides."""
    worker = await driver.open_worker()
    job_id = await driver.insert()
    claim = await driver.claim_one(worker)
    await driver.settle(worker, claim, Outcome.DEAD, reason="timeout", error=ERROR, retention_days=0)
    await driver.advance(timedelta(days=400))
    await driver.store.maintain([1])
    record = await driver.get(job_id)

    assert (record.state, record.reason, record.payload) == (JobState.DEAD, "timeout", {"to": "me"})
    assert record.error == msgspec.json.decode(ERROR)
    [attempt] = record.past_attempts
    assert (attempt["attempt"], attempt["worker"], attempt["outcome"]) == (1, worker, "dead")


async def test_history_expires_after_its_days(driver: StoreDriver) -> None:
    """Maintenance makes room for the days asked for, and drops what was kept long enough, not earlier."""
    worker = await driver.open_worker()
    await driver.store.maintain([1, 30])
    job_id = await driver.insert()
    await driver.settle(worker, await driver.claim_one(worker), Outcome.SUCCEEDED, retention_days=30)
    await driver.store.maintain([1, 30])

    await driver.advance(timedelta(days=30))
    await driver.store.maintain([1, 30])
    assert (await driver.get(job_id)).state is JobState.SUCCEEDED
    await driver.advance(timedelta(days=2))
    await driver.store.maintain([1, 30])
    assert await driver.store.get(job_id) is None


async def test_retry_waits_its_pause_and_uses_an_attempt(driver: StoreDriver) -> None:
    """A retry is claimable after its pause, as the next attempt; its due time stays."""
    worker = await driver.open_worker()
    job_id = await driver.insert()
    due_at = (await driver.get(job_id)).due_at
    await driver.settle(worker, await driver.claim_one(worker), Outcome.RETRY, due=after(HOUR), error=ERROR)
    waiting = await driver.get(job_id)

    assert (waiting.state, waiting.attempt, waiting.worker_id) == (JobState.WAITING, 1, None)
    assert (waiting.due_at, waiting.started_at) == (due_at, None)
    assert waiting.ready_at is not None
    assert waiting.ready_at >= due_at + HOUR
    assert await driver.claim(worker) == []
    await driver.advance(HOUR)
    claim = await driver.claim_one(worker)
    assert (claim.id, claim.attempt, claim.claim_no) == (job_id, 2, 2)


async def test_released_claim_was_none(driver: StoreDriver) -> None:
    """A release gives the attempt back and is no failed attempt; the job is ready at once."""
    worker, other = await driver.open_worker(), await driver.open_worker()
    job_id = await driver.insert()
    released_at = await driver.now()
    await driver.settle(worker, await driver.claim_one(worker), Outcome.RELEASED)
    record = await driver.get(job_id)
    claim = await driver.claim_one(other)

    assert (record.state, record.attempt, list(record.past_attempts)) == (JobState.WAITING, 0, [])
    assert (claim.attempt, claim.claim_no, claim.crashes) == (1, 2, 0)
    assert claim.ready_us >= to_microseconds(released_at)  # never in the past


async def test_job_released_before_its_time_still_waits_for_it(driver: StoreDriver) -> None:
    """A job that was claimed ahead and released is not early."""
    worker = await driver.open_worker()
    job_id = await driver.insert(due=after(HOUR))
    [claim] = await driver.claim(worker, ahead=1, horizon=2 * HOUR)
    await driver.settle(worker, claim, Outcome.RELEASED)

    assert await driver.claim(worker) == []
    await driver.advance(HOUR)
    assert await driver.claim_ids(worker) == [job_id]


async def test_job_released_to_a_new_due_time(driver: StoreDriver) -> None:
    """How a worker reschedules a job that it holds."""
    worker = await driver.open_worker()
    job_id = await driver.insert()
    due_at = await driver.now() + HOUR
    due = Due(at_us=to_microseconds(due_at))
    await driver.settle(worker, await driver.claim_one(worker), Outcome.RELEASED, due=due)

    assert (await driver.get(job_id)).due_at == due_at
    assert await driver.claim(worker) == []
    await driver.advance(HOUR)
    assert await driver.claim_ids(worker) == [job_id]


async def test_failed_attempts_stay_with_the_job(driver: StoreDriver) -> None:
    """Each attempt's worker, start, end, outcome and error, oldest first, also once the job has ended."""
    worker, other = await driver.open_worker(), await driver.open_worker()
    job_id = await driver.insert()
    started: list[int] = []
    for holder, outcome in [(worker, Outcome.RETRY), (other, Outcome.RETRY), (worker, Outcome.IGNORED)]:
        claim = await driver.claim_one(holder)
        started.append(to_microseconds(await driver.now()))
        error = f'{{"message": "{outcome.value}"}}'
        await driver.settle(holder, claim, outcome, started_us=started[-1], error=error)
    past = (await driver.get(job_id)).past_attempts

    assert [(a["attempt"], a["worker"], a["outcome"], a["error"]["message"]) for a in past] == [
        (1, worker, "retry", "retry"),
        (2, other, "retry", "retry"),
        (3, worker, "ignored", "ignored"),
    ]
    assert [to_microseconds(instant_of(a["started_at"])) for a in past] == started
    assert all(instant_of(a["started_at"]) <= instant_of(a["ended_at"]) for a in past)


async def test_follow_ups_exist_exactly_with_the_completion(driver: StoreDriver) -> None:
    """The jobs that a job leads to are inserted when its claim ends, delays counted from then."""
    worker = await driver.open_worker()
    await driver.insert()
    claim = await driver.claim_one(worker)
    now, later = new_job(), new_job(due=after(HOUR))

    assert await driver.store.get(now.id) is None
    assert await driver.settle(worker, claim, Outcome.SUCCEEDED, follow_ups=(now, later))
    assert await driver.claim_ids(worker) == [now.id]
    await driver.advance(HOUR)
    assert await driver.claim_ids(worker) == [later.id]


async def test_refused_follow_up_leaves_the_whole_batch_as_it_was(driver: StoreDriver) -> None:
    """One transaction: where a follow-up cannot be inserted, no claim of the batch ends."""
    worker = await driver.open_worker()
    present = await driver.insert(due=after(HOUR))
    for _ in range(3):
        await driver.insert()
    done, retried, dead = await driver.claim(worker)
    added = new_job()
    settlements = [
        Settlement(claim=dead, outcome=Outcome.DEAD, error=ERROR),
        Settlement(claim=retried, outcome=Outcome.RETRY, error=ERROR),
        Settlement(claim=done, outcome=Outcome.SUCCEEDED, follow_ups=(added, new_job(id=present))),
    ]
    with pytest.raises(DatabaseError):
        await driver.store.settle(worker, settlements)

    assert await driver.store.get(added.id) is None
    assert {claim.id for claim in await driver.store.claims(worker, [])} == {done.id, retried.id, dead.id}


async def test_batch_of_all_kinds(driver: StoreDriver) -> None:
    """One call ends claims in every way; those that are not held any more do not disturb the others."""
    worker = await driver.open_worker()
    ids = [await driver.insert() for _ in Outcome]
    claims = await driver.claim(worker)
    endings = dict(zip(Outcome, claims, strict=True))
    lost = endings.pop(Outcome.SUCCEEDED)
    await driver.settle(worker, lost, Outcome.RETRY, due=after(HOUR), error=ERROR)
    settlements = [
        Settlement(claim=claim, outcome=outcome, due=after(HOUR), error=ERROR, retention_days=1)
        for outcome, claim in endings.items()
    ]
    late = Settlement(claim=lost, outcome=Outcome.SUCCEEDED, follow_ups=(new_job(),))

    assert await driver.store.settle(worker, [late, *settlements]) == {claim.id for claim in endings.values()}
    states = {outcome: (await driver.get(claim.id)).state for outcome, claim in endings.items()}
    assert states == {
        Outcome.IGNORED: JobState.IGNORED,
        Outcome.CANCELLED: JobState.CANCELLED,
        Outcome.RETRY: JobState.WAITING,
        Outcome.RELEASED: JobState.WAITING,
        Outcome.DEAD: JobState.DEAD,
    }
    assert len(await driver.store.find()) == len(ids)


@pytest.mark.parametrize("outcome", list(Outcome))
async def test_repeated_settlement_changes_nothing(driver: StoreDriver, outcome: Outcome) -> None:
    """Sent again, as after a lost answer, it ends nothing and inserts no follow-up a second time."""
    worker = await driver.open_worker()
    job_id = await driver.insert()
    claim = await driver.claim_one(worker)
    follow_ups = (new_job(),) if outcome is Outcome.SUCCEEDED else ()
    settlement = Settlement(claim=claim, outcome=outcome, error=ERROR, retention_days=1, follow_ups=follow_ups)

    assert await driver.store.settle(worker, [settlement]) == {job_id}
    before = await driver.store.find()
    assert await driver.store.settle(worker, [settlement]) == set()
    assert await driver.store.find() == before


@pytest.mark.parametrize("outcome", list(Outcome))
async def test_late_worker_changes_nothing(driver: StoreDriver, outcome: Outcome) -> None:
    """Another worker, an earlier claim of the same worker, a closed one: each write is without effect."""
    worker, other = await driver.open_worker(), await driver.open_worker()
    job_id = await driver.insert()
    first = await driver.claim_one(worker)
    follow_up = new_job()

    async def settle_late(by: JobId | str) -> set[JobId]:
        late = Settlement(claim=first, outcome=outcome, error=ERROR, retention_days=1, follow_ups=(follow_up,))
        return await driver.store.settle(other if by == "other" else worker, [late])

    assert await settle_late("other") == set()  # not its holder
    await driver.settle(worker, first, Outcome.RELEASED)
    assert await settle_late("worker") == set()  # waits again
    again = await driver.claim_one(worker)
    assert await settle_late("worker") == set()  # the same worker holds a later claim
    record = await driver.get(job_id)
    assert (record.state, record.claim_no, record.worker_id) == (JobState.RUNNING, 2, worker)
    await driver.store.close_worker(worker)
    assert await driver.settle(worker, again, outcome, error=ERROR) is False  # closed
    assert (await driver.get(job_id)).state is JobState.WAITING
    assert await driver.store.get(follow_up.id) is None
