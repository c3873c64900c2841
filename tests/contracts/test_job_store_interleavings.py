"""The job store's contract over random interleavings: at most one live claim per job, and nothing is lost."""

from collections.abc import Awaitable
from datetime import timedelta

import msgspec
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from eventflow.clock import to_microseconds
from eventflow.errors import LeaseLostError
from eventflow.ids import JobId, WorkerId, new_uuid
from eventflow.jobs import (
    CancelOutcome,
    ClaimBatch,
    ClaimedJob,
    Interest,
    JobState,
    Outcome,
    Peer,
    RescheduleOutcome,
    Settlement,
)
from tests.support.job_stores import ERROR, InMemoryDriver, PostgresDriver, StoreDriver, after, interest, new_job
from tests.support.postgres import Database

HOUR = timedelta(hours=1)
WORKERS = 3


class Step(msgspec.Struct, frozen=True):
    """
    One call.

    Attributes:
        who: Number of the worker that calls, or is meant.
        which: Picks a job, a claim or a sighting, whatever the call needs.
    """

    call: str
    who: int
    which: int
    outcome: Outcome


KNOWN = (("Both", "Old"), ("Both", "New"))
"""What workers of the old and the new version of an application can run."""
CALLS = (
    *(
        "insert",
        "insert",
        "insert",
        "insert_later",
        "claim",
        "claim",
        "claim_ahead",
        "settle",
        "settle",
        "settle_stale",
    ),
    *("see", "rescue", "close", "open", "beat", "cancel", "reschedule", "pass_time"),
    *("die", "die", "die", "die", "die", "claim_suspect", "park", "park", "claim_parked", "sweep"),
)
STEPS = st.lists(
    st.builds(
        Step,
        call=st.sampled_from(CALLS),
        who=st.integers(0, WORKERS - 1),
        which=st.integers(0, 100),
        outcome=st.sampled_from(list(Outcome)),
    ),
    min_size=30,  # a short list hardly does anything
    max_size=80,
)


class Model:
    """What must be true, kept beside the store, and compared after every call."""

    def __init__(self, driver: StoreDriver) -> None:
        self.driver = driver
        self.queue = new_uuid()  # its own, so that examples can share a database
        self.wants = interest((self.queue,), ("Both", "Old", "New"))
        self.interests = [interest((self.queue,), names) for names in KNOWN]
        self.workers: list[WorkerId] = []
        self.closed: set[WorkerId] = set()
        self.beats: dict[WorkerId, int] = {}
        self.states: dict[JobId, JobState] = {}
        self.holders: dict[JobId, tuple[WorkerId, int]] = {}
        self.claim_nos: dict[JobId, int] = {}
        self.crashes: dict[JobId, int] = {}
        self.names: dict[JobId, str] = {}
        self.put_aside: set[JobId] = set()
        self.asked_to_cancel: set[JobId] = set()
        self.claims: list[tuple[WorkerId, ClaimedJob]] = []
        self.sightings: list[tuple[Peer, int]] = []

    async def open(self) -> None:
        """Register the workers."""
        for _ in range(WORKERS):
            await self.open_worker()

    async def open_worker(self) -> WorkerId:
        """Register one more."""
        worker = await self.driver.open_worker()
        self.workers.append(worker)
        self.beats[worker] = 0
        return worker

    async def take(self, step: Step) -> None:
        """Make one call as one of the youngest workers, which may be closed, and check its answer."""
        worker = self.workers[-WORKERS:][step.who]
        await getattr(self, f"_{step.call}")(worker, step)

    async def _insert(self, worker: WorkerId, step: Step) -> None:
        name = self.wants.names[step.which % 3]
        self._inserted(await self.driver.insert(queue=self.queue, priority=step.which % 4, name=name), name)

    async def _insert_later(self, worker: WorkerId, step: Step) -> None:
        due = after((step.which % 3) * HOUR)
        self._inserted(await self.driver.insert(queue=self.queue, due=due, name="Both"), "Both")

    async def _claim(self, worker: WorkerId, step: Step, *, parked: bool = False, ahead: int = 0) -> None:
        wants = self.interests[step.which % 2]
        claim = self.driver.store.claim(
            worker, wants, ready=1 + step.which % 3, ahead=ahead, horizon_us=to_microseconds(HOUR), parked=parked
        )
        for job_id in await self._claimed(worker, wants, claim):
            assert self.crashes[job_id] < 2, "a suspect ran beside others"
            assert parked or job_id not in self.put_aside
            self.put_aside.discard(job_id)

    async def _claim_ahead(self, worker: WorkerId, step: Step) -> None:
        await self._claim(worker, step, ahead=2)

    async def _claim_parked(self, worker: WorkerId, step: Step) -> None:
        await self._claim(worker, step, parked=True)

    async def _claim_suspect(self, worker: WorkerId, step: Step) -> None:
        wants = self.interests[step.which % 2]
        taken = await self._claimed(worker, wants, self.driver.store.claim_suspect(worker, wants))
        assert len(taken) <= 1
        assert all(self.crashes[job_id] >= 2 for job_id in taken)

    async def _claimed(self, worker: WorkerId, wants: Interest, claim: Awaitable[ClaimBatch]) -> list[JobId]:
        try:
            jobs = (await claim).jobs
        except LeaseLostError:
            assert worker in self.closed
            return []
        assert worker not in self.closed
        for claimed in jobs:
            job_id = claimed.id
            assert self.states[job_id] is JobState.WAITING, "claimed while another claim was alive, or after its end"
            assert self.names[job_id] in wants.names
            assert (claimed.claim_no, claimed.crashes) == (self.claim_nos[job_id] + 1, self.crashes[job_id])
            self.claim_nos[job_id] = claimed.claim_no
            self.states[job_id] = JobState.RUNNING
            self.holders[job_id] = (worker, claimed.claim_no)
            self.claims.append((worker, claimed))
        return [claimed.id for claimed in jobs]

    async def _park(self, worker: WorkerId, step: Step) -> None:
        wants = self.interests[step.which % 2]
        parked = await self.driver.store.park_unknown(wants)
        aside = {job_id for job_id in self.states if (await self.driver.get(job_id)).parked == "unknown"}
        assert aside >= self.put_aside
        fresh = aside - self.put_aside
        assert len(fresh) == parked, "put aside twice"
        assert all(self.names[job_id] not in wants.names and self.crashes[job_id] < 2 for job_id in fresh)
        self.put_aside = aside

    async def _sweep(self, worker: WorkerId, step: Step) -> None:
        await self.driver.store.sweep()

    async def _settle(self, worker: WorkerId, step: Step) -> None:
        live = [(w, c) for w, c in self.claims if self.holders.get(c.id) == (w, c.claim_no)]
        if live:
            await self._end(*live[step.which % len(live)], step)

    async def _settle_stale(self, worker: WorkerId, step: Step) -> None:
        if self.claims:  # whoever's and however old, and perhaps written by another
            holder, claim = self.claims[step.which % len(self.claims)]
            await self._end(worker if step.which % 2 else holder, claim, step)

    async def _end(self, worker: WorkerId, claim: ClaimedJob, step: Step) -> None:
        follow_up = new_job(queue=self.queue, name="Both") if step.outcome is Outcome.SUCCEEDED else None
        settlement = Settlement(
            claim=claim,
            outcome=step.outcome,
            error=ERROR,
            retention_days=1,
            due=after(HOUR) if step.outcome is Outcome.RETRY else None,
            follow_ups=(follow_up,) if follow_up else (),
        )
        settled = await self.driver.store.settle(worker, [settlement])
        held = self.holders.get(claim.id) == (worker, claim.claim_no)
        assert settled == ({claim.id} if held else set())
        if held:
            del self.holders[claim.id]
            self._left(claim.id, _STATE_AFTER[step.outcome])
        if follow_up is not None:
            assert (await self.driver.store.get(follow_up.id) is not None) == held
            if held:
                self._inserted(follow_up.id, follow_up.name)

    async def _see(self, worker: WorkerId, step: Step) -> None:
        tick = await self.driver.store.tick(WorkerId.new(), self.wants)
        self.sightings.extend((peer, self.beats[peer.worker_id]) for peer in tick.peers if peer.worker_id in self.beats)

    async def _rescue(self, worker: WorkerId, step: Step) -> None:
        if self.sightings:
            peer, beats = self.sightings[step.which % len(self.sightings)]
            stands_still = peer.worker_id not in self.closed and self.beats[peer.worker_id] == beats
            rescued = await self.driver.store.rescue(peer)
            assert rescued == (self._held_by(peer.worker_id) if stands_still else None)
            if stands_still:
                self._closed(peer.worker_id, crashed=True)

    async def _die(self, worker: WorkerId, step: Step) -> None:
        """With what it has or finds in its hands: jobs that see several deaths would be rare otherwise."""
        if worker not in self.closed:
            await self._claim_parked(worker, step)
            if not self._held_by(worker):
                await self._claim_suspect(worker, step)
            peer = await self.driver.peer(worker)
            assert await self.driver.store.rescue(peer) == self._held_by(worker)
            self._closed(worker, crashed=True)
            await self.open_worker()

    async def _close(self, worker: WorkerId, step: Step) -> None:
        expected = self._held_by(worker)
        assert await self.driver.store.close_worker(worker) == expected
        self._closed(worker)

    async def _open(self, worker: WorkerId, step: Step) -> None:
        await self.open_worker()

    async def _beat(self, worker: WorkerId, step: Step) -> None:
        assert await self.driver.store.beat(worker) == (worker not in self.closed)
        self.beats[worker] += 1

    async def _cancel(self, worker: WorkerId, step: Step) -> None:
        if self.states:
            job_id = list(self.states)[step.which % len(self.states)]
            outcome = await self.driver.store.cancel(job_id)
            state = self.states[job_id]
            assert outcome is _CANCELLED_FROM.get(state, CancelOutcome.NOT_FOUND)
            if outcome is CancelOutcome.CANCELLED:
                self.states[job_id] = JobState.CANCELLED
                self.put_aside.discard(job_id)
            elif outcome is CancelOutcome.REQUESTED:
                self.asked_to_cancel.add(job_id)

    async def _reschedule(self, worker: WorkerId, step: Step) -> None:
        if self.states:
            job_id = list(self.states)[step.which % len(self.states)]
            if await self.driver.store.reschedule(job_id, after(HOUR)) is RescheduleOutcome.RESCHEDULED:
                self.put_aside.discard(job_id)

    async def _pass_time(self, worker: WorkerId, step: Step) -> None:
        await self.driver.advance(HOUR)

    async def check(self) -> None:
        """Every job is where it must be, and held by whom the model says."""
        for job_id, state in self.states.items():
            record = await self.driver.get(job_id)
            assert record.state is state
            assert (record.claim_no, record.crashes) == (self.claim_nos[job_id], self.crashes[job_id])
            assert record.parked == self._parked(job_id)
            if state is JobState.RUNNING:
                assert self.holders[job_id] == (record.worker_id, record.claim_no)

    async def drain(self) -> None:
        """Close all workers; a last one finds every job that has not ended."""
        for worker in self.workers:
            await self.driver.store.close_worker(worker)
            self._closed(worker)
        worker = await self.open_worker()
        open_jobs = {job_id for job_id, state in self.states.items() if state is JobState.WAITING}
        await self.driver.advance(5 * HOUR)
        claim = self.driver.store.claim(worker, self.wants, ready=1000, ahead=0, horizon_us=0, parked=True)
        found = await self._claimed(worker, self.wants, claim)
        while taken := await self._claimed(worker, self.wants, self.driver.store.claim_suspect(worker, self.wants)):
            found.extend(taken)
        assert sorted(found) == sorted(open_jobs)

    def _inserted(self, job_id: JobId, name: str) -> None:
        self.states[job_id] = JobState.WAITING
        self.claim_nos[job_id] = self.crashes[job_id] = 0
        self.names[job_id] = name

    def _parked(self, job_id: JobId) -> str | None:
        if self.states[job_id] is JobState.WAITING and self.crashes[job_id] >= 2:
            return "suspect"
        return "unknown" if job_id in self.put_aside else None

    def _held_by(self, worker: WorkerId) -> int:
        return sum(holder == worker for holder, _ in self.holders.values())

    def _closed(self, worker: WorkerId, *, crashed: bool = False) -> None:
        self.closed.add(worker)
        for job_id in [job_id for job_id, (holder, _) in self.holders.items() if holder == worker]:
            del self.holders[job_id]
            if crashed and job_id not in self.asked_to_cancel:
                self.crashes[job_id] += 1
            self._left(job_id, JobState.WAITING if self.crashes[job_id] < 5 else JobState.DEAD)

    def _left(self, job_id: JobId, state: JobState) -> None:
        if state is JobState.WAITING and job_id in self.asked_to_cancel:
            state = JobState.CANCELLED
        self.asked_to_cancel.discard(job_id)
        self.states[job_id] = state


_STATE_AFTER = {
    Outcome.SUCCEEDED: JobState.SUCCEEDED,
    Outcome.IGNORED: JobState.IGNORED,
    Outcome.CANCELLED: JobState.CANCELLED,
    Outcome.DEAD: JobState.DEAD,
    Outcome.RETRY: JobState.WAITING,
    Outcome.RELEASED: JobState.WAITING,
}
_CANCELLED_FROM = {JobState.WAITING: CancelOutcome.CANCELLED, JobState.RUNNING: CancelOutcome.REQUESTED}


async def run(driver: StoreDriver, steps: list[Step]) -> None:
    """One interleaving, from an empty queue to an empty queue."""
    model = Model(driver)
    await model.open()
    for step in steps:
        await model.take(step)
    await model.check()
    await model.drain()


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
async def test_one_live_claim_and_nothing_lost_in_memory(steps: list[Step]) -> None:
    """Whatever workers do and in whichever order, a job has one holder at most and is never lost."""
    await run(InMemoryDriver(), steps)


@settings(
    max_examples=20,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would take minutes here
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS)
async def test_one_live_claim_and_nothing_lost_on_postgres(database: Database, steps: list[Step]) -> None:
    """The same on Postgres."""
    driver = PostgresDriver(database.worker, database.admin)
    try:
        await run(driver, steps)
    finally:
        await driver.close()
