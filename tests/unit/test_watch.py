"""Looking at the store: the dead, the signals, the time."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import anyio
import msgspec
import pytest

from eventflow import LeaseLostError, WorkerId, WorkerSettings
from eventflow.ids import JobId
from eventflow.jobs import InMemoryJobStore, Interest, Outcome, Peer, Settlement, Signal, Tick
from eventflow.jobs.records import ClaimedJob
from eventflow.jobs.worker.store_time import StoreTime
from eventflow.jobs.worker.watch import Obituary, Watch
from eventflow.scheduling import Due
from tests.unit.bench import Bench

ME, BOB, EVE = WorkerId.new(), WorkerId.new(), WorkerId.new()


def tick(*peers: Peer, server: str = "first") -> Tick:
    """A look that shows these other workers."""
    return Tick(
        now_us=0,
        next_us=None,
        open=True,
        blocked=False,
        parked=False,
        suspect_us=None,
        my_turn=False,
        server=server,
        peers=peers,
        signals=[],
    )


def peer(beat: int, *, gone: bool = False, worker_id: WorkerId = BOB) -> Peer:
    """Another worker, as one look shows it."""
    return Peer(worker_id, beat, session_gone=gone)


class TestObituary:
    """Which workers are dead."""

    def looks(self, *seen: tuple[float, Tick], longest_gap: float = 3.0) -> list[list[WorkerId]]:
        """Who is dead after each look, with a lease of 15 seconds."""
        obituary = Obituary(lease_duration=15, longest_gap=longest_gap)
        return [[dead.worker_id for dead in obituary.look(look, at)[0]] for at, look in seen]

    def test_beat_that_stands_still_for_the_lease_is_death(self) -> None:
        """A worker whose beat has been the same for the lease's duration of our own time is dead, not before."""
        assert self.looks(*[(float(at), tick(peer(7))) for at in range(17)]) == [[]] * 15 + [[BOB]] * 2

    def test_beat_that_moves_is_life(self) -> None:
        """Any beat in between begins the time anew."""
        seen = [(float(at), tick(peer(7 if at < 14 else 8))) for at in range(29)]

        assert self.looks(*seen) == [[]] * 29

    def test_each_worker_has_its_own_time(self) -> None:
        """The silence of one says nothing of another."""
        seen = [(float(at), tick(peer(1), peer(at, worker_id=EVE))) for at in range(16)]

        assert self.looks(*seen)[-1] == [BOB]

    def test_gap_without_looks_begins_anew(self) -> None:
        """While the store did not answer nobody could have beaten: an outage expires nobody."""
        seen = [(float(at), tick(peer(7))) for at in range(14)]
        after = [(100.0 + at, tick(peer(7))) for at in range(16)]

        assert self.looks(*seen, *after) == [[]] * 14 + [[]] * 15 + [[BOB]]

    def test_another_server_begins_anew(self) -> None:
        """After a restart or a failover everybody gets the whole lease again."""
        seen = [(float(at), tick(peer(7))) for at in range(14)]
        after = [(14.0 + at, tick(peer(7), server="second")) for at in range(16)]

        assert self.looks(*seen, *after) == [[]] * 14 + [[]] * 15 + [[BOB]]

    def test_session_missing_in_two_looks_is_death(self) -> None:
        """A session that is gone in two looks half a second apart, with no beat between, is a dead worker."""
        obituary = Obituary(lease_duration=15, longest_gap=3)

        first = obituary.look(tick(peer(7, gone=True)), 0.0)
        early = obituary.look(tick(peer(7, gone=True)), 0.4)
        second = obituary.look(tick(peer(7, gone=True)), 0.5)

        assert first == ([], True)
        assert early == ([], True)
        assert second == ([peer(7, gone=True)], True)

    def test_beat_between_the_looks_is_life(self) -> None:
        """A worker that beats although its session is missing, as one that reconnects, is alive."""
        assert self.looks(*[(at / 2, tick(peer(at, gone=True))) for at in range(20)]) == [[]] * 20

    def test_session_that_comes_back_is_life(self) -> None:
        """A session seen again between two looks begins the suspicion anew."""
        gone, there = tick(peer(7, gone=True)), tick(peer(7))

        assert self.looks((0.0, gone), (0.5, there), (1.0, gone), (1.4, gone), (1.5, gone)) == [[]] * 4 + [[BOB]]

    def test_server_change_between_the_looks_is_no_proof(self) -> None:
        """After a restart all sessions are gone: the first look at the new server is not the second look."""
        seen = (0.0, tick(peer(7, gone=True))), (0.5, tick(peer(7, gone=True), server="second"))

        assert self.looks(*seen) == [[], []]

    def test_worker_that_left_is_forgotten(self) -> None:
        """A worker that was away in between is met anew."""
        seen = [(0.0, tick(peer(7))), (2.0, tick()), *((float(at), tick(peer(7))) for at in range(4, 17, 2))]

        assert self.looks(*seen)[-1] == []


class LeaseFake:
    """A lease in good order."""

    beaten_at = 0.0
    closed = False
    listening = True


class ClaimerFake:
    """Takes note of what it is told."""

    def __init__(self) -> None:
        self.seen: list[Tick] = []
        self.asked = 0

    def see(self, tick: Tick) -> None:
        self.seen.append(tick)

    def ask(self) -> None:
        self.asked += 1


class HolderFake:
    """Slots or timers: holds jobs that have not started, and what runs."""

    def __init__(self) -> None:
        self.unstarted: dict[JobId, ClaimedJob] = {}
        self.running: dict[JobId, RunningFake] = {}

    def take(self, job_id: JobId) -> ClaimedJob | None:
        return self.unstarted.pop(job_id, None)

    def add(self, claims: Sequence[ClaimedJob]) -> None:
        self.unstarted.update((claim.id, claim) for claim in claims)

    def find(self, job_id: JobId) -> "RunningFake | None":
        return self.running.get(job_id)


class RunningFake:
    """A job in a slot."""

    def __init__(self, claim: ClaimedJob) -> None:
        self.claim = claim
        self.endings: list[Outcome] = []

    def cancel(self, ending: Outcome) -> None:
        self.endings.append(ending)


class CompletionsFake(list[Settlement]):
    """Keeps what it is given."""

    add = list[Settlement].append


class ShowingStore(InMemoryJobStore):
    """A store whose looks show what the test says."""

    look = tick()
    rescued: list[Peer]
    lots: list[int]
    """How many unknown jobs each go puts aside."""

    async def tick(self, worker_id: WorkerId, interest: Interest) -> Tick:
        return self.look

    async def park_unknown(self, interest: Interest) -> int:
        lot = self.lots.pop(0)
        if not self.lots:
            self.look = tick()
        return lot

    async def rescue(self, peer: Peer) -> int | None:
        self.rescued.append(peer)
        return 3


class Rig:
    """A watch among fakes."""

    def __init__(self, **settings: Any) -> None:
        self.bench = Bench(store=ShowingStore)
        assert isinstance(self.bench.store, ShowingStore)
        self.store = self.bench.store
        self.store.rescued = []
        self.lease, self.claimer, self.completions = LeaseFake(), ClaimerFake(), CompletionsFake()
        self.slots, self.timers = HolderFake(), HolderFake()
        self.store_time = StoreTime(self.bench.clock)
        fakes: dict[str, Any] = {
            "lease": self.lease,
            "claimer": self.claimer,
            "slots": self.slots,
            "timers": self.timers,
            "completions": self.completions,
        }
        self.watch = Watch(
            self.store,
            ME,
            self.bench.interest,
            store_time=self.store_time,
            settings=WorkerSettings(**settings),
            clock=self.bench.clock,
            **fakes,
        )

    async def look(self, **changes: Any) -> None:
        """Look once, without waiting afterwards."""
        self.store.look = msgspec.structs.replace(tick(), **changes)
        self.watch.look_now()
        await self.watch.watch_step()

    async def signalled(self, claim: ClaimedJob, kind: str, *, claim_no: int = 1, due_us: int | None = None) -> None:
        """Look while somebody asks something of a job."""
        await self.look(signals=[Signal(claim.id, claim_no, kind, due_us)])


async def test_look_gives_the_time_and_the_next_job() -> None:
    """Each look is a sample of the store's time, and tells the claimer of the earliest job."""
    rig = Rig()

    await rig.look(now_us=1_000_000, next_us=5)

    assert rig.store_time.bound_us() == 1_000_000
    assert [tick.next_us for tick in rig.claimer.seen] == [5]


async def test_closed_worker_learns_it_by_looking() -> None:
    """A worker that was closed by another ends at its next look."""
    with pytest.raises(LeaseLostError):
        await Rig().look(open=False)


async def looks_within(rig: Rig, seconds: float) -> list[float]:
    """When it looks, in this time."""
    looked_at: list[float] = []

    async def look() -> None:
        while True:
            looked_at.append(rig.bench.clock.monotonic())
            await rig.watch.watch_step()

    async with anyio.create_task_group() as group:
        group.start_soon(look)
        await rig.bench.advance(seconds, step=0.05)
        group.cancel_scope.cancel()
    return looked_at


@pytest.mark.parametrize(("listening", "pause"), [(True, 1.0), (False, 0.1)])
async def test_looks_are_a_second_apart_or_less_where_nothing_is_heard(listening: bool, pause: float) -> None:
    """With notifications a look a second is enough; without, it polls."""
    rig = Rig()
    rig.lease.listening = listening

    looked = await looks_within(rig, 3)

    assert [b - a for a, b in pairwise(looked)] == [pytest.approx(pause, abs=0.051)] * (len(looked) - 1)
    assert len(looked) >= 3


async def test_many_unknown_jobs_are_put_aside_without_a_pause() -> None:
    """Claims walk over those that are left: the next lot follows at once, after a few it has time."""
    rig = Rig()
    rig.store.look = msgspec.structs.replace(tick(), blocked=True)
    rig.store.lots = [5000, 5000, 20, 30]

    looked = await looks_within(rig, 3)

    assert looked[:4] == pytest.approx([0.0, 0.0, 0.0, 0.5], abs=0.06)
    assert rig.store.lots == []


@pytest.mark.parametrize("poll_interval", [0.1, 5.0])
async def test_silent_worker_is_rescued_from(poll_interval: float) -> None:
    """A worker that stopped beating is closed, and its jobs claimed; also where looks are far apart."""
    rig = Rig(poll_interval=poll_interval)
    rig.lease.listening = False
    rig.store.look = tick(peer(7))

    async def look() -> None:
        while not rig.store.rescued:
            await rig.watch.watch_step()

    async with anyio.create_task_group() as group:
        group.start_soon(look)
        await rig.bench.advance(14.5)
        assert rig.store.rescued == []
        await rig.bench.advance(12)
        group.cancel_scope.cancel()

    assert rig.store.rescued == [peer(7)]
    assert rig.claimer.asked == 1


async def test_missing_session_is_looked_for_again_soon() -> None:
    """A suspicion shortens the pause: a killed worker is found within a second or so."""
    rig = Rig()
    rig.store.look = tick(peer(7, gone=True))

    async def look() -> None:
        while not rig.store.rescued:
            await rig.watch.watch_step()

    async with anyio.create_task_group() as group:
        group.start_soon(look)
        await rig.bench.advance(0.6, step=0.1)
        group.cancel_scope.cancel()

    assert rig.store.rescued == [peer(7, gone=True)]


@pytest.mark.parametrize("where", ["slots", "timers"])
async def test_cancel_of_a_job_that_has_not_started_ends_it(where: str) -> None:
    """A job held in memory that somebody cancels does not run; its claim ends as cancelled."""
    rig = Rig()
    claim = rig.bench.claim()
    getattr(rig, where).add([claim])

    await rig.signalled(claim, "cancel")

    assert [(s.claim, s.outcome) for s in rig.completions] == [(claim, Outcome.CANCELLED)]


async def test_reschedule_of_a_job_that_has_not_started_returns_it() -> None:
    """A job held in memory that somebody moves goes back to the store with its new due time."""
    rig = Rig()
    claim = rig.bench.claim()
    rig.timers.add([claim])

    await rig.signalled(claim, "reschedule", due_us=77)

    assert [(s.outcome, s.due) for s in rig.completions] == [(Outcome.RELEASED, Due(at_us=77))]


async def test_cancel_of_a_running_job_cancels_its_handler_once() -> None:
    """The handler of a running job is cancelled; the same signal seen again changes nothing."""
    rig = Rig()
    running = RunningFake(rig.bench.claim())
    rig.slots.running[running.claim.id] = running

    for _ in range(3):
        await rig.signalled(running.claim, "cancel")

    assert running.endings == [Outcome.CANCELLED]


async def test_reschedule_of_a_running_job_is_too_late() -> None:
    """A job that has started is not moved."""
    rig = Rig()
    running = RunningFake(rig.bench.claim())
    rig.slots.running[running.claim.id] = running

    await rig.signalled(running.claim, "reschedule", due_us=77)

    assert running.endings == []
    assert rig.completions == []


@pytest.mark.parametrize("kind", ["cancel", "reschedule"])
async def test_signal_for_an_earlier_claim_is_none_for_this_one(kind: str) -> None:
    """A signal seen late, after its claim ended and the job was claimed anew, leaves the job where it is."""
    rig = Rig()
    held, running = rig.bench.claim(claim_no=2), RunningFake(rig.bench.claim(claim_no=2))
    rig.timers.add([held])
    rig.slots.running[running.claim.id] = running

    await rig.signalled(held, kind)
    await rig.signalled(running.claim, kind)

    assert rig.completions == []
    assert running.endings == []
    assert rig.timers.unstarted == {held.id: held}


async def test_signals_for_unknown_jobs_are_harmless() -> None:
    """A signal for a job that is not here any more does nothing."""
    rig = Rig()

    await rig.signalled(rig.bench.claim(), "cancel")

    assert rig.completions == []
