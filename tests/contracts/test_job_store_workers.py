"""The job store's contract: leases of workers, what they see of each other, and rescue."""

from datetime import timedelta

import msgspec
import pytest

from eventflow.clock import to_microseconds
from eventflow.errors import LeaseLostError
from eventflow.ids import WorkerId
from eventflow.jobs import JobState, Outcome
from tests.support.job_stores import StoreDriver, after, interest, new_job, worker_record

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


async def test_worker_beats_until_it_is_closed(driver: StoreDriver) -> None:
    """A beat tells whether the lease still holds; an incarnation that never was has none."""
    worker = await driver.open_worker()

    assert await driver.store.beat(worker) is True
    await driver.store.close_worker(worker)
    assert await driver.store.beat(worker) is False
    assert await driver.store.beat(WorkerId.new()) is False


async def test_time_can_be_asked_for_alone(driver: StoreDriver) -> None:
    """It is the same that a look tells."""
    before = to_microseconds(await driver.now())
    now_us = await driver.store.now_us()

    assert before <= now_us <= to_microseconds(await driver.now())


async def test_registering_again_changes_nothing(driver: StoreDriver) -> None:
    """Repeated after a lost answer, it neither resets the beat nor opens a closed worker again."""
    worker = await driver.open_worker()
    await driver.store.beat(worker)
    beating = await driver.peer(worker)
    await driver.store.open_worker(worker_record(worker))
    assert await driver.peer(worker) == beating

    await driver.store.close_worker(worker)
    await driver.store.open_worker(worker_record(worker))
    with pytest.raises(LeaseLostError):
        await driver.claim(worker)


async def test_tick_tells_whether_the_worker_is_open(driver: StoreDriver) -> None:
    """A closed worker sees that it is; the server is always the same one here."""
    worker = await driver.open_worker()
    first = await driver.store.tick(worker, driver.wants)
    await driver.store.close_worker(worker)
    second = await driver.store.tick(worker, driver.wants)

    assert (first.open, second.open) == (True, False)
    assert first.server == second.server != ""
    assert first.now_us <= second.now_us


async def test_tick_shows_the_other_open_workers(driver: StoreDriver) -> None:
    """Each with its beat; neither the asking worker nor closed ones."""
    worker, other, closed = [await driver.open_worker() for _ in range(3)]
    await driver.store.close_worker(closed)
    [peer] = (await driver.store.tick(worker, driver.wants)).peers
    await driver.store.beat(other)
    [later] = (await driver.store.tick(worker, driver.wants)).peers

    assert peer.worker_id == later.worker_id == other
    assert later.beat > peer.beat
    assert not peer.session_gone  # it never proved to hold one


async def test_tick_tells_when_the_next_job_is_ready(driver: StoreDriver) -> None:
    """The earliest job that this worker could claim, also one that has been ready for long."""
    worker = await driver.open_worker()
    wants = interest(("default",))
    assert (await driver.store.tick(worker, wants)).next_us is None
    await driver.insert(queue="mail")
    await driver.insert(name="Unknown")
    assert (await driver.store.tick(worker, wants)).next_us is None

    later = await driver.insert(due=after(1.5 * SECOND))
    sooner = await driver.insert(due=after(SECOND), priority=3)
    for expected in (sooner, later):
        ready_at = (await driver.get(expected)).ready_at
        assert ready_at is not None
        tick = await driver.store.tick(worker, wants)
        assert tick.next_us == to_microseconds(ready_at)
        await driver.store.cancel(expected)

    await driver.insert()
    await driver.advance(HOUR)
    tick = await driver.store.tick(worker, wants)
    assert tick.next_us is not None
    assert tick.next_us <= tick.now_us - to_microseconds(HOUR)
    await driver.claim(worker)
    assert (await driver.store.tick(worker, wants)).next_us is None


async def test_dead_workers_jobs_wait_again(driver: StoreDriver) -> None:
    """Rescue closes the worker; its jobs are ready, with the attempt given back and a crash counted."""
    worker, other = await driver.open_worker(), await driver.open_worker()
    job_id = await driver.insert()
    await driver.insert()
    await driver.claim(worker)

    assert await driver.store.rescue(await driver.peer(worker)) == 2
    record = await driver.get(job_id)
    assert (record.state, record.attempt, record.crashes, record.worker_id) == (JobState.WAITING, 0, 1, None)
    [attempt] = record.past_attempts
    assert (attempt["attempt"], attempt["worker"], attempt["outcome"]) == (1, worker, "worker_died")
    claims = await driver.claim(other)
    assert [(claim.attempt, claim.claim_no, claim.crashes) for claim in claims] == [(1, 2, 1)] * 2


async def test_rescued_worker_can_write_nothing(driver: StoreDriver) -> None:
    """It may still be running: its beat, claim and completion are refused, and no follow-up is inserted."""
    worker = await driver.open_worker()
    job_id = await driver.insert()
    claim = await driver.claim_one(worker)
    await driver.store.rescue(await driver.peer(worker))
    follow_up = new_job()

    assert await driver.store.beat(worker) is False
    with pytest.raises(LeaseLostError):
        await driver.claim(worker)
    assert await driver.settle(worker, claim, Outcome.SUCCEEDED, follow_ups=(follow_up,)) is False
    assert (await driver.get(job_id)).state is JobState.WAITING
    assert await driver.store.get(follow_up.id) is None
    assert await driver.store.claims(worker, []) == []


async def test_worker_that_has_beaten_is_not_rescued(driver: StoreDriver) -> None:
    """The beat that was seen must stand still; otherwise nothing changes."""
    worker = await driver.open_worker()
    await driver.insert()
    claim = await driver.claim_one(worker)
    seen = await driver.peer(worker)
    await driver.store.beat(worker)

    assert await driver.store.rescue(seen) is None
    assert await driver.store.beat(worker) is True
    assert await driver.settle(worker, claim, Outcome.SUCCEEDED)


async def test_worker_is_rescued_once(driver: StoreDriver) -> None:
    """Of several that find it dead, one rescues; the others learn that it is closed. No second crash is counted."""
    worker, other = await driver.open_worker(), await driver.open_worker()
    await driver.insert()
    await driver.claim(worker)
    seen = await driver.peer(worker)

    assert [await driver.store.rescue(seen), await driver.store.rescue(seen)] == [1, None]
    assert await driver.store.close_worker(worker) == 0
    assert (await driver.claim_one(other)).crashes == 1


async def test_rescue_takes_nothing_from_other_workers(driver: StoreDriver) -> None:
    """Only the dead worker's jobs move, not even those of a finished or earlier claim of its."""
    worker, other = await driver.open_worker(), await driver.open_worker()
    await driver.insert()
    given_back = await driver.claim_one(worker)
    await driver.settle(worker, given_back, Outcome.RELEASED)
    held = await driver.claim_one(other)

    assert await driver.store.rescue(await driver.peer(worker)) == 0
    assert await driver.store.claims(other, []) == [held]
    assert await driver.settle(other, held, Outcome.SUCCEEDED)


async def test_rescued_job_is_not_early(driver: StoreDriver) -> None:
    """A job that the dead worker had claimed ahead of time still waits for its due time."""
    worker, other = await driver.open_worker(), await driver.open_worker()
    job_id = await driver.insert(due=after(HOUR))
    await driver.claim(worker, ahead=1, horizon=2 * HOUR)
    await driver.store.rescue(await driver.peer(worker))

    assert await driver.claim(other) == []
    await driver.advance(HOUR)
    assert await driver.claim_ids(other) == [job_id]


async def test_closing_gives_everything_back(driver: StoreDriver) -> None:
    """A worker that leaves in good order costs its jobs neither an attempt nor a crash; repeating it is harmless."""
    worker, other = await driver.open_worker(), await driver.open_worker()
    job_id = await driver.insert()
    await driver.insert()
    await driver.claim(worker)

    assert [await driver.store.close_worker(worker), await driver.store.close_worker(worker)] == [2, 0]
    assert await driver.store.close_worker(WorkerId.new()) == 0
    record = await driver.get(job_id)
    assert (record.state, record.attempt, record.crashes) == (JobState.WAITING, 0, 0)
    assert list(record.past_attempts) == []
    claims = await driver.claim(other)
    assert [(claim.attempt, claim.claim_no) for claim in claims] == [(1, 2)] * 2


async def test_signals_die_with_the_worker(driver: StoreDriver) -> None:
    """What was asked of a dead worker is not asked of the next one, and does not reach the dead one."""
    worker, other = await driver.open_worker(), await driver.open_worker()
    job_id = await driver.insert()
    await driver.claim(worker)
    await driver.store.cancel(job_id)
    await driver.store.rescue(await driver.peer(worker))
    await driver.claim(other)

    for asking in (worker, other):
        assert (await driver.store.tick(asking, driver.wants)).signals == []


async def test_errors_of_attempts_survive_a_crash(driver: StoreDriver) -> None:
    """A retry, then a crash: both are in the record, in order."""
    worker = await driver.open_worker()
    job_id = await driver.insert()
    first = await driver.claim_one(worker)
    await driver.settle(worker, first, Outcome.RETRY, error='{"message": "first"}')
    await driver.claim_one(worker)
    await driver.store.rescue(await driver.peer(worker))
    record = await driver.get(job_id)

    assert [(a["attempt"], a["outcome"]) for a in record.past_attempts] == [(1, "retry"), (2, "worker_died")]
    assert record.past_attempts[0]["error"] == msgspec.json.decode('{"message": "first"}')
    assert (record.attempt, record.crashes) == (1, 1)
