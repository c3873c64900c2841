"""The worker whole, on the in-memory store and a clock that stands still until told."""

from datetime import timedelta

import anyio
import msgspec
import pytest

from eventflow import JobContext, JobState, ManualClock, RetryPolicy, WorkerId
from eventflow.jobs import ClaimBatch, InMemoryJobStore, Interest, JobRecord, WorkerRecord
from tests.unit.bench import Act, Bench, forever, others_rest, raising


async def record_of(bench: Bench, **wanted: object) -> JobRecord:
    """The one job there is."""
    [record] = await bench.store.find()
    for name, value in wanted.items():
        assert getattr(record, name) == value
    return record


async def test_job_runs_as_soon_as_it_is_scheduled() -> None:
    """A job for now runs within a millisecond of its notification."""
    bench = Bench()

    async with bench.working() as worker:
        bench.store.on_wake(worker.wake)
        await bench.scheduler.schedule(Act())
        await others_rest()
        await bench.advance(0.001, step=0.001)
        await record_of(bench, state=JobState.SUCCEEDED, attempt=1, claim_no=1)


async def test_job_that_nobody_announced_is_found_by_the_sweep() -> None:
    """Without a notification a job is found within a second."""
    bench = Bench()

    async with bench.working():
        await bench.scheduler.schedule(Act())
        await others_rest()
        await record_of(bench, state=JobState.WAITING)
        await bench.advance(1)
        await record_of(bench, state=JobState.SUCCEEDED)


async def test_job_due_in_thirty_days_runs_then() -> None:
    """A job for next month waits that long, to the second, and runs."""
    started: list[float] = []

    async def note(context: JobContext) -> None:
        started.append(bench.clock.monotonic())

    bench = Bench(behaviour=note)
    due = timedelta(days=30).total_seconds()

    async with bench.working(heartbeat_interval=3_600, fence_after=7_200, lease_duration=9_000):
        await bench.scheduler.schedule(Act(), delay=timedelta(days=30))
        await bench.advance(due - 1, step=3_600)
        assert started == []
        await bench.advance(2)

    assert started == [pytest.approx(due, abs=0.3)]
    assert started[0] >= due


async def test_thirty_days_in_one_leap_are_survived() -> None:
    """A process that slept for a month has lost its lease, goes on under a new one, and runs what is due."""
    bench = Bench()

    async with bench.working():
        await bench.scheduler.schedule(Act(), delay=timedelta(days=30))
        await others_rest()
        bench.clock.advance(timedelta(days=30))
        await bench.advance(2)
        record = await record_of(bench, state=JobState.SUCCEEDED)

    assert record.started_at is not None
    assert record.started_at >= record.due_at


async def test_failed_job_is_tried_again_after_its_delay() -> None:
    """A failing job waits its policy's delay between attempts, and dies after the last."""
    bench = Bench(behaviour=raising(ValueError("broken")))
    retry = RetryPolicy(max_attempts=3, base=timedelta(seconds=10), cap=timedelta(seconds=10))

    async with bench.working():
        await bench.scheduler.schedule(Act(), retry=retry)
        await bench.advance(1)
        await record_of(bench, state=JobState.WAITING, attempt=1)
        await bench.advance(25)
        record = await record_of(bench, state=JobState.DEAD, attempt=3, reason="error")

    assert [past["attempt"] for past in record.past_attempts] == [1, 2, 3]
    assert record.error is not None
    assert record.error["message"] == "broken"


async def test_stop_lets_running_jobs_end() -> None:
    """A stop claims nothing more, waits for what runs, and writes what came of it."""
    leave = anyio.Event()

    async def wait(context: JobContext) -> None:
        await leave.wait()

    bench = Bench(behaviour=wait)
    worker = bench.worker(grace_period=25)

    async with anyio.create_task_group() as group:
        await group.start(worker.run)
        await bench.scheduler.schedule(Act(number=0))
        await bench.advance(1)
        worker.stop()
        await bench.advance(10)
        await bench.scheduler.schedule(Act(number=2))
        leave.set()

    records = {record.payload["number"]: record.state for record in await bench.store.find()}
    assert records == {0: JobState.SUCCEEDED, 2: JobState.WAITING}


async def test_stop_gives_back_what_does_not_end_in_time() -> None:
    """After the grace period handlers are cancelled; their jobs wait again with the attempt given back."""
    bench = Bench(behaviour=forever)
    worker = bench.worker(grace_period=25, concurrency=1, claim_ahead=3.0, queue_patience=1_000.0)

    async with anyio.create_task_group() as group:
        await group.start(worker.run)
        await bench.scheduler.schedule(Act())
        await bench.scheduler.schedule(Act(), delay=timedelta(seconds=2))
        await bench.advance(1)
        assert {r.state for r in await bench.store.find()} == {JobState.RUNNING}
        worker.stop()
        await others_rest()
        # What had not started is given back at once.
        assert {r.state for r in await bench.store.find()} == {JobState.RUNNING, JobState.WAITING}
        await bench.advance(24.5)
        assert {r.state for r in await bench.store.find()} == {JobState.RUNNING, JobState.WAITING}
        await bench.advance(1)

    records = await bench.store.find()
    assert {record.state for record in records} == {JobState.WAITING}
    assert [record.attempt for record in records] == [0, 0]


class AnswersLate(InMemoryJobStore):
    """A claim takes long to commit, after it has read the clock."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.clock = clock

    async def claim(
        self, worker_id: WorkerId, interest: Interest, *, ready: int, ahead: int, horizon_us: int, parked: bool = False
    ) -> ClaimBatch:
        batch = await super().claim(worker_id, interest, ready=ready, ahead=ahead, horizon_us=horizon_us, parked=parked)
        await self.clock.sleep(0.1)
        return batch


async def test_job_is_not_as_late_as_the_answer_to_its_claim() -> None:
    """The worker asks for the time once more before it is due; looks at the store do not help here."""
    started: list[float] = []

    async def note(context: JobContext) -> None:
        started.append(bench.clock.monotonic())

    bench = Bench(behaviour=note, store=AnswersLate)
    await bench.scheduler.schedule(Act(), delay=timedelta(seconds=1))

    async with bench.working(tick_interval=600.0):
        await bench.advance(1.5, step=0.002)

    assert started == [pytest.approx(1.0, abs=0.01)]


class AnswersNever(InMemoryJobStore):
    """Commits a claim that takes something, and lets the worker wait for the answer; but for the first such claim."""

    answers = 1

    async def claim(
        self, worker_id: WorkerId, interest: Interest, *, ready: int, ahead: int, horizon_us: int, parked: bool = False
    ) -> ClaimBatch:
        batch = await super().claim(worker_id, interest, ready=ready, ahead=ahead, horizon_us=horizon_us, parked=parked)
        if batch.jobs:
            self.answers -= 1
        if self.answers < 0:
            await anyio.sleep_forever()
        return batch


async def test_stop_gives_back_the_jobs_of_a_claim_that_was_not_answered() -> None:
    """They are somebody's who works on, not this worker's for its whole grace period."""
    bench = Bench(behaviour=forever, store=AnswersNever)
    worker = bench.worker(grace_period=25)

    async with anyio.create_task_group() as group:
        await group.start(worker.run)
        runs = await bench.scheduler.schedule(Act())
        await bench.advance(1)
        unanswered = await bench.scheduler.schedule(Act())
        await bench.advance(1)
        worker.stop()
        await bench.advance(1)
        states = {record.id: record.state for record in await bench.store.find()}
        assert states == {runs: JobState.RUNNING, unanswered: JobState.WAITING}
        group.cancel_scope.cancel()


async def test_cancelled_worker_gives_its_jobs_back_without_grace() -> None:
    """A worker that is cancelled ends at once; its jobs wait again, no attempt and no crash counted."""
    bench = Bench(behaviour=forever)

    async with anyio.create_task_group() as group:
        await group.start(bench.worker().run)
        await bench.scheduler.schedule(Act())
        await bench.advance(1)
        await record_of(bench, state=JobState.RUNNING)
        group.cancel_scope.cancel()

    await record_of(bench, state=JobState.WAITING, attempt=0, crashes=0)


async def test_dead_workers_jobs_are_rescued_by_another() -> None:
    """The jobs of a worker that fell silent go to another after the lease, as the same attempt, a crash counted."""
    bench = Bench()
    dead = WorkerId.new()
    await bench.hold(3, dead)

    async with bench.working():
        await bench.advance(14)
        assert {record.state for record in await bench.store.find()} == {JobState.RUNNING}
        await bench.advance(3)
        records = await bench.store.find()

    assert [(r.state, r.attempt, r.crashes, r.claim_no) for r in records] == [(JobState.SUCCEEDED, 1, 1, 2)] * 3
    assert dead not in {record.worker_id for record in records}


async def test_worker_that_lost_its_lease_goes_on_under_a_new_identity() -> None:
    """A worker closed by others cancels its handlers, writes nothing for them, and begins anew."""
    workers: list[WorkerId] = []
    done = anyio.Event()

    async def note(context: JobContext) -> None:
        [record] = await bench.store.find()
        assert record.worker_id is not None
        workers.append(record.worker_id)
        if len(workers) == 1:
            await anyio.sleep_forever()
        done.set()

    bench = Bench(behaviour=note)

    async with bench.working():
        await bench.scheduler.schedule(Act())
        await bench.advance(1)
        await bench.store.close_worker(workers[0])
        await bench.advance(5)

    assert done.is_set()
    assert len(set(workers)) == 2
    await record_of(bench, state=JobState.SUCCEEDED)


async def test_two_workers_share_the_jobs() -> None:
    """With two workers every job runs once."""
    ran: list[int] = []

    async def note(context: JobContext) -> None:
        ran.append(context.attempt)

    bench = Bench(behaviour=note)
    await bench.store.open_worker(WorkerRecord(WorkerId.new(), "idle", 1, "0", None, 1))
    await bench.scheduler.schedule_many([Act(number=n) for n in range(500)], delay=timedelta(seconds=1))

    async with bench.working(concurrency=7), bench.working(concurrency=3):
        await bench.advance(5, step=0.05)

    assert ran == [1] * 500
    assert {record.state for record in await bench.store.find(limit=1_000)} == {JobState.SUCCEEDED}


async def test_worker_serves_only_its_queues() -> None:
    """Jobs of other queues are left for others."""
    bench = Bench()
    bench.interest = bench.model.interest(("mail",))

    async with bench.working(queues=("mail",)):
        mail = await bench.scheduler.schedule(Act(), queue="mail")
        other = await bench.scheduler.schedule(Act())
        await bench.advance(3)

    records = {record.id: record.state for record in await bench.store.find()}
    assert records == {mail: JobState.SUCCEEDED, other: JobState.WAITING}


async def test_cancelling_a_running_job_stops_it() -> None:
    """A running job that somebody cancels is stopped within a second, and ends as cancelled."""
    bench = Bench(behaviour=forever)

    async with bench.working():
        job_id = await bench.scheduler.schedule(Act())
        await bench.advance(1)
        await bench.scheduler.cancel(job_id)
        await bench.advance(1)
        await record_of(bench, state=JobState.CANCELLED)


async def test_job_that_cannot_be_read_does_not_hold_up_the_others() -> None:
    """A broken row becomes a dead letter; the jobs around it run."""
    bench = Bench()
    good = await bench.scheduler.schedule(Act())
    broken = bench.encoder.encode(Act())
    await bench.store.insert([msgspec.structs.replace(broken, payload=b'{"number":"x"}')])

    async with bench.working():
        await bench.advance(2)

    records = {record.id: (record.state, record.reason) for record in await bench.store.find()}
    assert records == {good: (JobState.SUCCEEDED, None), broken.id: (JobState.DEAD, "undecodable")}


async def test_thousands_of_jobs_of_one_instant_all_run() -> None:
    """Jobs due together run all, none early, with few slots."""
    early: list[bool] = []

    async def note(context: JobContext) -> None:
        early.append(bench.clock.now() < context.due_at)

    bench = Bench(behaviour=note)
    await bench.scheduler.schedule_many([Act() for _ in range(2_000)], delay=timedelta(seconds=10))

    async with bench.working(concurrency=100):
        await bench.advance(30, step=0.25)

    assert early == [False] * 2_000
