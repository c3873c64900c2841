"""Jobs that workers died of run alone, and neither they nor the others are kept out for long."""

from contextlib import AbstractAsyncContextManager

import pytest

from eventflow import DatabaseUnavailableError, JobContext, JobId, ManualClock, Worker, WorkerId
from eventflow.jobs import ClaimBatch, InMemoryJobStore, Interest, JobState, Peer, Tick, WorkerRecord
from eventflow.jobs.worker.completion import Completions
from eventflow.jobs.worker.quarantine import Quarantine
from eventflow.jobs.worker.slots import Seats, Slots
from eventflow.jobs.worker.store_time import StoreTime
from eventflow.jobs.worker.timers import Timers
from tests.unit.bench import Act, Bench, others_rest

HOUR_US = 3_600_000_000


def tick(waited: float | None = 0.0, *, my_turn: bool = False, others: bool = False, parked: bool = False) -> Tick:
    """A look that shows a suspect which has waited so many seconds, and whether other jobs are ready."""
    return Tick(
        now_us=HOUR_US,
        next_us=HOUR_US if others else None,
        open=True,
        blocked=False,
        parked=parked,
        suspect_us=None if waited is None else HOUR_US - int(waited * 1_000_000),
        my_turn=my_turn,
        server="first",
        peers=[],
        signals=[],
    )


class Ward:
    """A quarantine of a worker whose other jobs begin and end when the test says so."""

    def __init__(self, bench: Bench | None = None) -> None:
        self.bench = bench or Bench()
        self.clock = self.bench.clock
        store_time = StoreTime(self.clock)
        completions = Completions(
            self.bench.store,
            WorkerId.new(),
            commits=self.bench.commits,
            clock=self.clock,
            rng=self.bench.rng,
            linger=0,
            batch=1,
        )
        slots = Slots(
            seats=Seats(1),
            runner=self.bench.runner,
            completions=completions,
            store_time=store_time,
            clock=self.clock,
            patience=1,
            freed=lambda: None,
            finished=lambda: None,
        )
        self.timers = Timers(
            slots=slots, store_time=store_time, read_time=self.bench.store.now_us, clock=self.clock, fired=lambda: None
        )
        self.quarantine = Quarantine(slots=slots, timers=self.timers, completions=completions, clock=self.clock)

    def begin(self) -> JobId:
        """Hold one more job."""
        claim = self.bench.claim(ready_us=2**60)
        self.timers.add([claim])
        return claim.id

    def take(self) -> JobId:
        """Take a suspect."""
        assert self.quarantine.may_take
        claim = self.bench.claim(ready_us=2**60, crashes=2)
        self.quarantine.took([claim])
        self.timers.add([claim])
        return claim.id

    def end(self, job_id: JobId) -> None:
        """One that is held ends."""
        assert self.timers.take(job_id)


def test_worker_without_anything_else_to_do_takes_a_suspect_at_once() -> None:
    """Whoever's turn it is; nothing else comes in until then, and no more suspects after the last."""
    ward = Ward()
    assert not ward.quarantine.is_closed
    ward.quarantine.see(tick(0.0))
    assert ward.quarantine.is_closed

    first = ward.take()
    assert (ward.quarantine.is_closed, ward.quarantine.may_take) == (True, False)
    ward.end(first)
    second = ward.take()
    ward.end(second)
    assert ward.quarantine.may_take
    ward.quarantine.took([])
    assert (ward.quarantine.is_closed, ward.quarantine.may_take) == (False, False)


@pytest.mark.parametrize("shown", [{"others": True}, {"parked": True}])
def test_other_jobs_that_are_ready_go_first_unless_it_is_the_workers_turn(shown: dict[str, bool]) -> None:
    """An empty worker has something else to do while others wait, put aside or not."""
    ward = Ward()
    ward.quarantine.see(tick(**shown))
    assert not ward.quarantine.is_closed

    ward.quarantine.see(tick(**shown, my_turn=True))
    assert ward.quarantine.may_take


def test_busy_worker_lets_its_jobs_end_when_it_is_its_turn() -> None:
    """Nothing more comes in, and the suspect is taken when the last of them has ended; not before."""
    ward = Ward()
    jobs = [ward.begin(), ward.begin()]
    ward.quarantine.see(tick(8.0))
    assert not ward.quarantine.is_closed

    ward.quarantine.see(tick(8.0, my_turn=True))
    for job_id in jobs:
        assert (ward.quarantine.is_closed, ward.quarantine.may_take) == (True, False)
        ward.end(job_id)
    assert ward.quarantine.may_take


@pytest.mark.parametrize(("waited", "patience"), [(0.0, 1.0), (2.0, 1.0), (100.0, 25.0), (3600.0, 900.0)])
def test_patience_grows_with_the_wait(waited: float, patience: float) -> None:
    """A worker whose jobs do not end waits for a quarter of the time that the suspect has waited."""
    ward = Ward()
    ward.begin()
    ward.quarantine.see(tick(waited, my_turn=True))

    assert ward.quarantine.seconds_left == patience
    ward.clock.advance(patience - 0.001)
    assert ward.quarantine.is_closed
    ward.clock.advance(0.001)
    assert (ward.quarantine.is_closed, ward.quarantine.seconds_left) == (False, None)


@pytest.mark.parametrize("last_look", [tick(100.0, my_turn=False), tick(None, my_turn=True)])
def test_busy_worker_gives_up_with_its_turn_and_without_a_suspect(last_look: Tick) -> None:
    """So that no two workers let their jobs end for one suspect, and none does for nothing."""
    ward = Ward()
    ward.begin()
    ward.quarantine.see(tick(100.0, my_turn=True))
    ward.quarantine.see(last_look)

    assert not ward.quarantine.is_closed


@pytest.mark.parametrize("look", [tick(None), tick(100.0), tick(100.0, others=True, my_turn=True)])
def test_nothing_comes_in_while_a_suspect_runs(look: Tick) -> None:
    """However long that takes and whatever else is ready; and then the others' turn has come."""
    ward = Ward()
    ward.quarantine.see(tick())
    running = ward.take()
    for _ in range(100):
        ward.clock.advance(1.0)
        ward.quarantine.see(look)
        assert (ward.quarantine.is_closed, ward.quarantine.may_take) == (True, False)

    ward.end(running)
    assert not ward.quarantine.is_closed
    ward.quarantine.see(tick(100.0, others=True, my_turn=True))
    assert not ward.quarantine.is_closed


def test_only_worker_stays_open_most_of_the_time() -> None:
    """It is always its turn and its jobs never end: others still have three quarters of its time, also in the end."""
    ward = Ward()
    ward.begin()
    closed: list[bool] = []
    for second in range(2000):
        ward.quarantine.see(tick(float(second), my_turn=True, others=True))
        for _ in range(4):
            closed.append(ward.quarantine.is_closed)
            ward.clock.advance(0.25)

    assert 0.15 < sum(closed) / len(closed) < 0.27


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("job_seconds", [0.5, 20, 600])
async def test_suspect_is_taken_at_last_though_all_workers_are_busy(workers: int, job_seconds: float) -> None:
    """Behind jobs of any length that follow each other without a gap; and never do two workers hold back for it."""
    bench = Bench()
    await make_suspects(bench, 1)
    wards = {await open_worker(bench): Ward(bench) for _ in range(workers)}
    held = {worker: ward.begin() for worker, ward in wards.items()}
    ends = {worker: job_seconds * (1 + n / workers) for n, worker in enumerate(wards)}
    while not any(ward.quarantine.may_take for ward in wards.values()):
        now = bench.clock.monotonic()
        assert now < 100 + 20 * job_seconds, "it starves"
        for worker, ward in wards.items():
            if worker in held and ends[worker] <= now:
                ward.end(held.pop(worker))
            if worker not in held and not ward.quarantine.is_closed:
                held[worker], ends[worker] = ward.begin(), now + job_seconds
            look = await bench.store.tick(worker, bench.interest)
            if now % 1 == 0:
                ward.quarantine.see(look)
        assert sum(ward.quarantine.is_closed for ward in wards.values()) <= 1
        bench.clock.advance(0.25)


async def make_suspects(bench: Bench, count: int) -> list[JobId]:
    """So many jobs that two workers died of; nobody else gets to act meanwhile."""
    await bench.scheduler.schedule_many([Act() for _ in range(count)], queue="suspects")
    wants = Interest(("suspects",), bench.interest.names, bench.interest.versions)
    ids: list[JobId] = []
    for _ in range(2):
        worker = await open_worker(bench)
        batch = await bench.store.claim(worker, wants, ready=count, ahead=0, horizon_us=0)
        ids = [claim.id for claim in batch.jobs]
        assert await bench.store.rescue(Peer(worker, 0, session_gone=True)) == count
    return ids


async def open_worker(bench: Bench) -> WorkerId:
    """A worker that does nothing by itself."""
    worker = WorkerId.new()
    await bench.store.open_worker(WorkerRecord(worker, "host", 1, "0", None, 1))
    return worker


class ForgetfulStore(InMemoryJobStore):
    """Commits some claims without answering."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.unanswered_claims = 0
        self.unanswered_suspects = 0

    async def claim(
        self, worker_id: WorkerId, interest: Interest, *, ready: int, ahead: int, horizon_us: int, parked: bool = False
    ) -> ClaimBatch:
        batch = await super().claim(worker_id, interest, ready=ready, ahead=ahead, horizon_us=horizon_us, parked=parked)
        if self.unanswered_claims:
            self.unanswered_claims -= 1
            raise DatabaseUnavailableError("connection reset")
        return batch

    async def claim_suspect(self, worker_id: WorkerId, interest: Interest) -> ClaimBatch:
        batch = await super().claim_suspect(worker_id, interest)
        if self.unanswered_suspects:
            self.unanswered_suspects -= 1
            raise DatabaseUnavailableError("connection reset")
        return batch


class Theatre:
    """
    A bench whose jobs take a while; notes which ran beside which.

    Attributes:
        seconds: How long they take.
        started: The jobs in the order in which they began, with the time.
        beside: For each job, those that ran at the same time.
    """

    def __init__(self) -> None:
        self.seconds = 0.3
        self.started: dict[JobId, float] = {}
        self.beside: dict[JobId, set[JobId]] = {}
        self._running: set[JobId] = set()
        self.bench = Bench(behaviour=self._act, store=self._make_store)

    def _make_store(self, clock: ManualClock) -> ForgetfulStore:
        self.store = ForgetfulStore(clock)
        return self.store

    async def _act(self, context: JobContext) -> None:
        job_id = context.job_id
        assert job_id not in self.started, "it ran twice"
        self.started[job_id] = self.bench.clock.monotonic()
        self.beside[job_id] = set(self._running)
        for other in self._running:
            self.beside[other].add(job_id)
        self._running.add(job_id)
        await self.bench.clock.sleep(self.seconds)
        self._running.discard(job_id)

    def working(self, concurrency: int = 4) -> AbstractAsyncContextManager[Worker]:
        """A worker, which does not wait for its jobs at the end."""
        return self.bench.working(concurrency=concurrency, grace_period=0.0)

    async def schedule(self, count: int = 1) -> list[JobId]:
        """Jobs that nobody suspects."""
        return list(await self.bench.scheduler.schedule_many([Act() for _ in range(count)]))


async def test_suspects_run_alone_and_the_others_together() -> None:
    """Also those that others come before and after; and all run, once."""
    stage = Theatre()
    async with stage.working(concurrency=4) as worker:
        others = await stage.schedule(6)
        worker.wake()
        await others_rest()
        suspects = await make_suspects(stage.bench, 3)
        others += await stage.schedule(6)
        worker.wake()
        await stage.bench.advance(10)

    assert set(stage.started) == {*others, *suspects}
    assert [stage.beside[job_id] for job_id in suspects] == [set()] * 3
    assert max(len(stage.beside[job_id]) for job_id in others) >= 3


async def test_job_that_comes_while_a_suspect_runs_starts_right_after_it() -> None:
    """Nobody has to wake the worker again, and no look at the store has to find it."""
    stage = Theatre()
    async with stage.working() as worker:
        [suspect] = await make_suspects(stage.bench, 1)
        await stage.bench.advance(1.2)
        assert list(stage.started) == [suspect]
        [other] = await stage.schedule()
        worker.wake()
        await stage.bench.advance(0.3, step=0.01)

    assert stage.started[other] == pytest.approx(stage.started[suspect] + stage.seconds, abs=0.03)


async def test_job_that_comes_while_a_worker_holds_back_in_vain_starts_with_its_patience_over() -> None:
    """Not with the next look at the store, which may be a second later."""
    stage = Theatre()
    stage.seconds = 1000
    async with stage.working(concurrency=2) as worker:
        [running] = await stage.schedule()
        worker.wake()
        await stage.bench.advance(0.1, step=0.01)
        assert list(stage.started) == [running]
        await make_suspects(stage.bench, 1)
        await stage.bench.advance(5.4, step=0.1)  # it held back once for a second, and does again since the fifth
        [other] = await stage.schedule()
        worker.wake()
        await stage.bench.advance(0.5, step=0.05)
        assert list(stage.started) == [running]
        await stage.bench.advance(0.5, step=0.05)

    assert stage.started[other] == pytest.approx(5 + (5 - 0.1) / 4, abs=0.1)


async def test_suspect_whose_claim_was_not_answered_is_given_back_and_runs_alone_later() -> None:
    """Meanwhile others run; the attempt is not lost."""
    stage = Theatre()
    stage.store.unanswered_suspects = 1
    [suspect] = await make_suspects(stage.bench, 1)
    async with stage.working(concurrency=2) as worker:
        await stage.bench.advance(3)
        assert not stage.started
        others = await stage.schedule(2)
        worker.wake()
        await stage.bench.advance(1)
        assert list(stage.started) == others
        await stage.bench.advance(20)

    assert stage.beside[suspect] == set()
    record = await stage.store.get(suspect)
    assert record is not None
    assert (record.state, record.attempt, record.claim_no) == (JobState.SUCCEEDED, 1, 4)


async def test_no_suspect_runs_while_jobs_of_an_unanswered_claim_may_turn_up() -> None:
    """A worker that cannot know what it holds cannot know that the suspect would be alone."""
    stage = Theatre()
    stage.seconds = 5
    async with stage.working() as worker:
        [suspect] = await make_suspects(stage.bench, 1)
        stage.store.unanswered_claims = 1
        [lost] = await stage.schedule()
        worker.wake()
        await stage.bench.advance(14)
        assert list(stage.started) == [lost]
        await stage.bench.advance(10)

    assert list(stage.started) == [lost, suspect]


async def test_suspects_starve_nobody_and_nobody_starves_them() -> None:
    """One worker, more of both than it can do: the others keep most of its time, and the suspects have a share."""
    stage = Theatre()
    stage.seconds = 0.5
    suspects = await make_suspects(stage.bench, 60)
    async with stage.working(concurrency=2) as worker:
        others = await stage.schedule(400)
        worker.wake()
        await stage.bench.advance(40)
        halfway = set(stage.started)
        await stage.bench.advance(40)

    most = 40 / stage.seconds
    for started in (halfway, set(stage.started) - halfway):
        assert len(started & set(suspects)) > 0.1 * most
        assert len(started & set(others)) > 0.5 * most * 2
