"""When a worker claims, and how much."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio
import msgspec
import pytest

from eventflow import DatabaseUnavailableError, LeaseLostError, ManualClock, WorkerId, WorkerSettings
from eventflow.clock import Clock
from eventflow.ids import JobId
from eventflow.jobs import ClaimBatch, ClaimedJob, InMemoryJobStore, Interest, Outcome, Settlement, WorkerRecord
from eventflow.jobs.worker import claiming
from eventflow.jobs.worker.claiming import Claimer, Throughput
from eventflow.jobs.worker.completion import Completions
from eventflow.jobs.worker.quarantine import Quarantine
from eventflow.jobs.worker.slots import Seats, Slots
from eventflow.jobs.worker.store_time import StoreTime
from eventflow.jobs.worker.timers import Timers
from eventflow.supervision import Supervisor
from tests.unit.bench import Act, Behaviour, Bench, do_nothing, forever, others_rest

ME = WorkerId.new()


class WatchedStore(InMemoryJobStore):
    """An in-memory store that notes the claims, and can fail before or after one."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.asked: list[tuple[int, int]] = []
        self.claimed: list[int] = []
        self.before: list[Exception] = []
        self.after: list[Exception] = []
        self.adoptions = 0
        self.took_us = 0
        """How long a claim takes by the store's own clock."""

    async def claim(
        self, worker_id: WorkerId, interest: Interest, *, ready: int, ahead: int, horizon_us: int, parked: bool = False
    ) -> ClaimBatch:
        self.asked.append((ready, ahead))
        if self.before:
            raise self.before.pop(0)
        batch = await super().claim(worker_id, interest, ready=ready, ahead=ahead, horizon_us=horizon_us, parked=parked)
        batch = msgspec.structs.replace(batch, now_us=batch.now_us + self.took_us)
        self.claimed.append(len(batch.jobs))
        if self.after:
            raise self.after.pop(0)
        return batch

    async def claims(self, worker_id: WorkerId, known: Sequence[JobId]) -> Sequence[ClaimedJob]:
        self.adoptions += 1
        return await super().claims(worker_id, known)


class Rig:
    """A claimer with real slots, timers and completions over a watched store."""

    def __init__(self, behaviour: Behaviour = do_nothing, *, concurrency: int = 4, **settings: Any) -> None:
        self.bench = Bench(behaviour=behaviour, store=self._make_store)
        self.clock = self.bench.clock
        chosen = WorkerSettings(concurrency=concurrency, **settings)
        store_time = StoreTime(self.clock)
        self.throughput = Throughput(self.clock)
        self.completions = Completions(
            self.store, ME, commits=self.bench.commits, clock=self.clock, rng=self.bench.rng, linger=0.0, batch=500
        )
        self.seats = Seats(concurrency)
        self.slots = Slots(
            seats=self.seats,
            runner=self.bench.runner,
            completions=self.completions,
            store_time=store_time,
            clock=self.clock,
            patience=10_000,
            freed=self._room_changed,
            finished=self.throughput.count,
        )
        self.timers = Timers(
            slots=self.slots,
            store_time=store_time,
            read_time=self.store.now_us,
            clock=self.clock,
            fired=self._room_changed,
        )
        self.claimer = Claimer(
            self.store,
            ME,
            self.bench.interest,
            slots=self.slots,
            timers=self.timers,
            completions=self.completions,
            store_time=store_time,
            throughput=self.throughput,
            quarantine=Quarantine(slots=self.slots, timers=self.timers, completions=self.completions, clock=self.clock),
            settings=chosen,
            clock=self.clock,
            rng=self.bench.rng,
        )

    def _make_store(self, clock: ManualClock) -> WatchedStore:
        self.store = WatchedStore(clock)
        return self.store

    def _room_changed(self) -> None:
        self.claimer.room_changed()

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """Let it work; nobody looks at the store once a second."""
        await self.store.open_worker(WorkerRecord(ME, "host", 1, "0", None, 1))
        supervisor = Supervisor(self.clock, self.bench.rng, fatal=(LeaseLostError,))
        async with anyio.create_task_group() as group:
            self.seats.group = group
            group.start_soon(supervisor.repeat, "claim", self.claimer.claim_step)
            group.start_soon(supervisor.repeat, "timers", self.timers.fire_step)
            group.start_soon(supervisor.repeat, "settle", self.completions.settle_step)
            await others_rest()
            yield
            group.cancel_scope.cancel()


async def test_claims_once_at_the_start_and_then_waits_for_a_reason() -> None:
    """Without a reason nothing is asked of the store, however much time passes."""
    rig = Rig()

    async with rig.open():
        await rig.bench.advance(3_600, step=60)

    assert len(rig.store.asked) == 1


async def test_notification_is_a_reason() -> None:
    """A notification makes it claim; many at once are one."""
    rig = Rig()

    async with rig.open():
        await rig.bench.scheduler.schedule(Act())
        for _ in range(5):
            rig.claimer.notify()
        await others_rest()
        await rig.bench.advance(0.01)

    assert rig.store.claimed == [0, 1]


async def test_worker_woken_in_vain_lets_others_go_first() -> None:
    """After claims that found nothing the next notification is acted upon a little later, within milliseconds."""
    rig = Rig()

    async with rig.open():
        for _ in range(6):
            rig.claimer.notify()
            await others_rest()
            await rig.bench.advance(0.01)
        asked = len(rig.store.asked)
        rig.claimer.notify()
        await others_rest()
        assert len(rig.store.asked) == asked
        rig.clock.advance(0.003)
        await others_rest()

    assert len(rig.store.asked) == asked + 1


async def test_due_time_that_comes_near_is_a_reason() -> None:
    """A job the store told of is claimed a little before its due time, and runs at it: nobody need ask."""
    ran: list[float] = []

    async def note(context: Any) -> None:
        ran.append(rig.clock.monotonic())

    rig = Rig(note, claim_ahead=0.3)
    await rig.bench.scheduler.schedule(Act(), delay=timedelta(seconds=2))

    async with rig.open():
        await rig.bench.advance(1.6)
        assert rig.store.claimed == [0]
        await rig.bench.advance(0.2, step=0.05)
        assert (rig.store.claimed, ran, len(rig.timers)) == ([0, 1], [], 1)
        await rig.bench.advance(0.3, step=0.001)

    assert ran == [pytest.approx(2, abs=0.002)]
    assert ran[0] >= 2


async def test_what_the_store_shows_is_a_reason() -> None:
    """A look at the store that finds a ready job makes it claim, without any notification."""
    rig = Rig()

    async with rig.open():
        await rig.bench.scheduler.schedule(Act())
        rig.claimer.see(await rig.store.tick(ME, rig.bench.interest))
        await others_rest()

    assert rig.store.claimed == [0, 1]


async def test_no_more_is_claimed_than_can_start() -> None:
    """The claim asks for the free slots; with full slots nothing is asked until one is freed."""
    leave = anyio.Event()

    async def wait(context: Any) -> None:
        await leave.wait()

    rig = Rig(wait, concurrency=4)
    await rig.bench.scheduler.schedule_many([Act() for _ in range(10)])

    async with rig.open():
        assert (rig.store.asked, rig.store.claimed) == ([(4, 4)], [4])
        for _ in range(3):
            rig.claimer.notify()
            rig.claimer.ask()
            await others_rest()
        assert len(rig.store.asked) == 1
        leave.set()
        await others_rest()

    assert max(rig.store.claimed) <= 4
    assert sum(rig.store.claimed) == 10


async def test_claim_ahead_that_was_full_is_followed_by_another() -> None:
    """Also if one of its jobs became ready while the store made it: it does not count among the ready ones."""
    rig = Rig(concurrency=4, claim_ahead=0.3)
    rig.store.took_us = 1000
    await rig.bench.scheduler.schedule(Act(), delay=timedelta(milliseconds=1))
    await rig.bench.scheduler.schedule_many([Act() for _ in range(19)], delay=timedelta(milliseconds=250))

    async with rig.open():
        await rig.bench.advance(0.5, step=0.01)

    assert sum(rig.store.claimed) == 20


async def test_full_claim_is_followed_by_another() -> None:
    """While the last claim was full there may be more: everything is fetched without another notification."""
    rig = Rig(concurrency=3)
    await rig.bench.scheduler.schedule_many([Act() for _ in range(20)])

    async with rig.open():
        pass

    assert sum(rig.store.claimed) == 20


@pytest.mark.parametrize("reason", ["notified", "due"])
async def test_nothing_is_claimed_behind_a_long_line(reason: str) -> None:
    """What came would stand behind the others, however soon it is due; it is claimed when the line has run short."""
    leave = anyio.Semaphore(0)

    async def wait(context: Any) -> None:
        await leave.acquire()

    rig = Rig(wait, concurrency=1)
    for _ in range(100):
        rig.throughput.count()
    rig.clock.advance(0.1)
    await rig.bench.scheduler.schedule_many([Act() for _ in range(20)])

    async with rig.open():
        for _ in range(5):
            leave.release()
        await others_rest()
        assert (rig.store.claimed, rig.slots.in_line) == ([16], 10)
        if reason == "notified":
            rig.claimer.notify()
        else:
            rig.claimer.see(await rig.store.tick(ME, rig.bench.interest))
        await rig.bench.advance(0.01)
        assert rig.store.claimed == [16]
        for _ in range(10):
            leave.release()
        await others_rest()
        assert (rig.store.claimed, rig.slots.in_line) == ([16, 4], 4)
        for _ in range(5):
            leave.release()
        await others_rest()


async def test_busy_worker_ignores_due_times() -> None:
    """With full slots a due job is left for others, and claimed as soon as there is room."""
    rig = Rig(forever, concurrency=1)
    await rig.bench.scheduler.schedule(Act())
    await rig.bench.scheduler.schedule(Act(), delay=timedelta(seconds=2))

    async with rig.open():
        await rig.bench.advance(20, step=1)
        assert rig.store.claimed == [1]
        rig.slots.cancel_all()
        await others_rest()

    assert sum(rig.store.claimed) >= 2


async def test_nothing_is_claimed_while_too_much_waits_to_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that cannot write what came of its jobs takes no more of them, and goes on when it can."""
    monkeypatch.setattr(claiming, "MOST_UNWRITTEN", 2)
    rig = Rig()
    done = [Settlement(claim=rig.bench.claim(), outcome=Outcome.RELEASED) for _ in range(3)]
    await rig.bench.scheduler.schedule(Act())
    await rig.store.open_worker(WorkerRecord(ME, "host", 1, "0", None, 1))

    async with anyio.create_task_group() as group:
        rig.seats.group = group
        for settlement in done:
            rig.completions.add(settlement)
        group.start_soon(rig.claimer.claim_step)
        await others_rest()
        assert rig.store.asked == []
        await rig.completions.settle_step()
        rig.claimer.room_changed()
        await others_rest()

    assert rig.store.claimed == [1]


async def test_claim_that_failed_is_made_again() -> None:
    """A claim that the store did not answer is repeated with backoff; nobody has to ask again."""
    rig = Rig()
    await rig.bench.scheduler.schedule(Act())
    rig.store.before = [DatabaseUnavailableError("away")] * 3

    async with rig.open():
        assert rig.store.claimed == []
        await rig.bench.advance(3)

    assert sum(rig.store.claimed) == 1


async def test_jobs_of_a_claim_without_an_answer_are_adopted() -> None:
    """A claim that was committed but not answered is found in the store: its jobs run, here and once."""
    ran: list[int] = []

    async def note(context: Any) -> None:
        ran.append(context.attempt)

    rig = Rig(note)
    await rig.bench.scheduler.schedule(Act())
    rig.store.after = [DatabaseUnavailableError("connection reset")]

    async with rig.open():
        await rig.bench.advance(3)

    assert rig.store.claimed[0] == 1
    assert ran == [1]


async def test_jobs_are_on_time_after_a_failed_claim() -> None:
    """Having missed an answer does not make the worker deaf: what falls due in the next seconds is on time."""
    ran: list[float] = []

    async def note(context: Any) -> None:
        ran.append(rig.clock.monotonic())

    rig = Rig(note)
    await rig.bench.scheduler.schedule(Act(), delay=timedelta(seconds=5))
    rig.store.before = [DatabaseUnavailableError("away")]

    async with rig.open():
        await rig.bench.advance(6, step=0.05)

    assert ran == [pytest.approx(5, abs=0.1)]


async def test_answer_that_is_committed_late_is_adopted() -> None:
    """A claim whose answer was lost may be committed seconds later; its jobs are looked for until then."""
    ran: list[int] = []

    async def note(context: Any) -> None:
        ran.append(context.attempt)

    rig = Rig(note)
    rig.store.before = [DatabaseUnavailableError("connection reset")]

    async with rig.open():
        await rig.bench.advance(2)
        await rig.bench.scheduler.schedule(Act())
        await InMemoryJobStore.claim(rig.store, ME, rig.bench.interest, ready=1, ahead=0, horizon_us=0)
        await rig.bench.advance(3)
        looked = rig.store.adoptions
        await rig.bench.advance(60)

    assert ran == [1]
    assert looked <= 7
    assert rig.store.adoptions <= 18  # it ends with the suspicion


async def test_claim_without_a_lease_ends_the_service() -> None:
    """A worker that was closed claims nothing and is told at once."""
    rig = Rig()

    with pytest.raises(LeaseLostError):
        await rig.claimer.claim_step()


def test_throughput_is_a_recent_average() -> None:
    """The rate follows what was counted lately."""
    clock = ManualClock()
    throughput = Throughput(clock)

    for _ in range(40):
        for _ in range(10):
            throughput.count()
        clock.advance(0.1)
        throughput.per_second()
    busy = throughput.per_second()
    for _ in range(20):
        clock.advance(0.1)
        throughput.per_second()

    assert busy == pytest.approx(100, rel=0.05)
    assert throughput.per_second() < 1
