"""What keeps the claims of one job apart, however late or often something of them is written."""

from collections.abc import AsyncGenerator
from random import Random
from typing import Any

import anyio
import pytest

from eventflow import JobState, LeaseLostError, WorkerId
from eventflow.jobs import ClaimBatch, ClaimedJob, Outcome, Peer, Settlement, WorkerRecord
from eventflow.postgres import Connection, PostgresJobStore, connector
from eventflow.postgres.statements import statement
from reliability.rig.transitions import Transitions
from tests.support.job_stores import ERROR, interest, new_job
from tests.support.waiting import eventually, waits_for_lock

ENDS = (Outcome.SUCCEEDED, Outcome.RETRY, Outcome.RELEASED, Outcome.DEAD, Outcome.CANCELLED)
RUNNING = """
    INSERT INTO eventflow.running (id, worker_id, claimed_at, queue_id, lane, priority, due_at, ready_at, created_at,
        name, version, payload, attempt, crashes, claim_no)
    VALUES ($1, $2, now(), 1, 0, 1, now(), now(), now(), 'Send', 1, '{}', 1, 0, 1)
"""


class Session:
    """A worker with a store of its own."""

    def __init__(self, dsn: str) -> None:
        self.store = PostgresJobStore(connector(dsn, name="session"), "eventflow")
        self.worker = WorkerId.new()

    async def open(self) -> None:
        """Register the worker."""
        await self.store.open_worker(WorkerRecord(self.worker, "host", 1, "1.0", None, 1))

    async def claim(self) -> ClaimBatch:
        """Claim what is ready."""
        return await self.store.claim(self.worker, interest(), ready=10, ahead=0, horizon_us=0)

    async def end(self, claim: ClaimedJob, outcome: Outcome, **given: Any) -> bool:
        """End a claim; false: it is not this worker's any more."""
        settlement = Settlement(claim=claim, outcome=outcome, error=ERROR, retention_days=1, **given)
        return bool(await self.store.settle(self.worker, [settlement]))


@pytest.fixture
async def sessions(dsn: str) -> AsyncGenerator[list[Session]]:
    """Two of them."""
    both = [Session(dsn), Session(dsn)]
    for session in both:
        await session.open()
    yield both
    for session in both:
        await session.store.close()


async def test_completions_sent_again_never_end_a_later_claim(
    sessions: list[Session], transitions: Transitions
) -> None:
    """
    Two sessions take turns with one job; everything they ever sent is sent again, at the same time.

    Each claim ends once at most, and by its own number, also where the same worker has the job again.
    """
    rng = Random(11)
    job = new_job()
    await sessions[0].store.insert([job])
    sent: list[tuple[Session, ClaimedJob, Outcome]] = []
    for claim_no in range(1, 30):
        holder = rng.choice(sessions)
        [claim] = (await holder.claim()).jobs
        assert claim.claim_no == claim_no
        stale: list[bool] = []

        async def send_again(session: Session, old: ClaimedJob, outcome: Outcome, seen: list[bool]) -> None:
            seen.append(await session.end(old, outcome))

        async with anyio.create_task_group() as group:
            for session, old, outcome in sent:
                group.start_soon(send_again, session, old, outcome, stale)
                group.start_soon(send_again, holder, old, outcome, stale)  # as if it had been its own
        assert not any(stale)
        [other] = [session for session in sessions if session is not holder]
        assert not await other.end(claim, rng.choice(ENDS)), "the number is right, the worker is not"
        end = rng.choice((Outcome.RELEASED, Outcome.RETRY))
        assert await holder.end(claim, end)
        assert not await holder.end(claim, rng.choice(ENDS))
        sent.append((holder, claim, rng.choice(ENDS)))
        sent = sent[-6:]
    assert await transitions.states(job.id) == ["waiting", *["running", "waiting"] * 29]


async def test_claim_in_flight_is_rescued_after_it_has_landed(sessions: list[Session], admin: Connection) -> None:
    """The rescue waits for a claim under way, or comes back: it never closes the worker around it."""
    doomed, rescuer = sessions
    job = new_job()
    await rescuer.store.insert([job])
    peer = Peer(doomed.worker, 0, session_gone=True)

    async with anyio.create_task_group() as group, admin.transaction():
        await admin.execute(RUNNING, job.id.uuid, rescuer.worker.uuid)  # the claim's own row has to wait for this
        group.start_soon(doomed.claim)
        await eventually(lambda: waits_for_lock(admin, "claim_jobs"))
        assert await rescuer.store.rescue(peer) is None
        await admin.execute("DELETE FROM eventflow.running")
    assert await rescuer.store.rescue(peer) == 1

    [claim] = (await rescuer.claim()).jobs
    assert (claim.id, claim.claim_no, claim.attempt, claim.crashes) == (job.id, 2, 1, 1)


async def test_claim_that_arrives_during_the_rescue_takes_nothing(sessions: list[Session], admin: Connection) -> None:
    """It waits until it is known whether the worker is closed, and then learns of it."""
    doomed, other = sessions
    job = new_job()
    await other.store.insert([job])
    raised: list[BaseException] = []

    async def claim() -> None:
        try:
            await doomed.claim()
        except LeaseLostError as exc:
            raised.append(exc)

    async with anyio.create_task_group() as group, admin.transaction():
        assert await admin.fetchval(statement("close_worker"), doomed.worker.uuid, 0)
        assert await admin.fetchval(statement("release_claims"), doomed.worker.uuid, True) == 0
        group.start_soon(claim)
        await eventually(lambda: waits_for_lock(admin, "claim_jobs"))
    assert len(raised) == 1
    record = await other.store.get(job.id)
    assert record is not None
    assert (record.state, record.claim_no) == (JobState.WAITING, 0)


async def test_closed_worker_changes_nothing(sessions: list[Session]) -> None:
    """Of one that was taken for dead, every late write is void: ends, follow-ups, releases, beats and claims."""
    late, heir = sessions
    job = new_job()
    await heir.store.insert([job])
    [old] = (await late.claim()).jobs
    assert await heir.store.rescue(Peer(late.worker, 0, session_gone=True)) == 1
    [new] = (await heir.claim()).jobs

    for outcome in ENDS:
        follow_up = new_job()
        assert not await late.end(old, outcome, follow_ups=(follow_up,) if outcome is Outcome.SUCCEEDED else ())
        assert await heir.store.get(follow_up.id) is None
    assert not await late.store.beat(late.worker)
    assert await late.store.close_worker(late.worker) == 0
    with pytest.raises(LeaseLostError):
        await late.claim()
    assert await heir.end(new, Outcome.SUCCEEDED)
