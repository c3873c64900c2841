"""One look at the store a second: time, jobs nobody announced, signals, and workers that died."""

import logging

import msgspec

from eventflow.clock import Clock, Wakeup
from eventflow.errors import LeaseLostError
from eventflow.ids import JobId, WorkerId
from eventflow.jobs.records import ClaimedJob, Interest, Outcome, Peer, Settlement, Signal, Tick
from eventflow.jobs.store import JobStore
from eventflow.jobs.worker.claiming import Claimer
from eventflow.jobs.worker.completion import Completions
from eventflow.jobs.worker.lease import Lease
from eventflow.jobs.worker.settings import WorkerSettings
from eventflow.jobs.worker.slots import Slots
from eventflow.jobs.worker.store_time import StoreTime
from eventflow.jobs.worker.timers import Timers
from eventflow.scheduling import Due

log = logging.getLogger("eventflow.worker")

SECOND_LOOK_SECONDS = 0.5
"""A session that is missing is looked for again after this, before its worker is taken for dead."""

MANY_PARKED = 1000
"""After so many jobs put aside in one go there are more, over which claims still walk: the next go follows at once."""

SWEEP_SHARE = 0.05
"""Most of a worker's time that goes into the sweep, which takes long while an old snapshot keeps dead entries."""


class _Sighting(msgspec.Struct):
    beat: int
    since: float
    """Monotonic seconds when this beat was seen first."""
    gone_since: float | None = None
    """When its session was missing first, with this beat."""


class Obituary:
    """
    Tells which workers are dead, from looks at the store.

    By its beat: another has seen it stand still for the lease's duration of its own monotonic time, while the
    store kept answering. No clock of any host is compared, and an outage of the store expires nobody.
    By its session, the fast way: the session it proved to hold is missing in two looks half a second apart,
    with no beat in between, on the same server.
    """

    def __init__(self, *, lease_duration: float, longest_gap: float) -> None:
        self._lease_duration = lease_duration
        self._longest_gap = longest_gap
        self._sightings: dict[WorkerId, _Sighting] = {}
        self._server = ""
        self._looked_at = float("-inf")

    def look(self, tick: Tick, at: float) -> tuple[list[Peer], bool]:
        """
        The peers that are dead, and whether to look again soon.

        Args:
            tick: What the store shows.
            at: Monotonic seconds of the look.
        """
        if tick.server != self._server or at - self._looked_at > self._longest_gap:
            self._sightings.clear()  # the store did not answer in between: nobody could have beaten
        self._server, self._looked_at = tick.server, at
        seen = {peer.worker_id: self._update(peer, at) for peer in tick.peers}
        self._sightings = seen
        dead = [peer for peer in tick.peers if self._is_dead(seen[peer.worker_id], at)]
        return dead, any(sighting.gone_since is not None for sighting in seen.values())

    def _update(self, peer: Peer, at: float) -> _Sighting:
        sighting = self._sightings.get(peer.worker_id)
        if sighting is None or sighting.beat != peer.beat:
            sighting = _Sighting(peer.beat, at)
        if not peer.session_gone:
            sighting.gone_since = None
        elif sighting.gone_since is None:
            sighting.gone_since = at
        return sighting

    def _is_dead(self, sighting: _Sighting, at: float) -> bool:
        if at - sighting.since >= self._lease_duration:
            return True
        return sighting.gone_since is not None and at - sighting.gone_since >= SECOND_LOOK_SECONDS


class Watch:
    """Asks the store for a tick and acts on it."""

    def __init__(
        self,
        store: JobStore,
        worker_id: WorkerId,
        interest: Interest,
        *,
        lease: Lease,
        claimer: Claimer,
        slots: Slots,
        timers: Timers,
        completions: Completions,
        store_time: StoreTime,
        settings: WorkerSettings,
        clock: Clock,
    ) -> None:
        self._store = store
        self._worker_id = worker_id
        self._interest = interest
        self._lease = lease
        self._claimer = claimer
        self._slots = slots
        self._timers = timers
        self._completions = completions
        self._store_time = store_time
        self._settings = settings
        self._clock = clock
        self._early = Wakeup(clock)
        self._obituary = Obituary(
            lease_duration=settings.lease_duration,
            longest_gap=3 * max(settings.tick_interval, settings.poll_interval, SECOND_LOOK_SECONDS),
        )
        self._sweep_from = float("-inf")
        self._handled: set[tuple[JobId, int, str]] = set()

    def look_now(self) -> None:
        """Do not wait for the next second."""
        self._early.set()

    async def watch_step(self) -> None:
        """Look once, act, and wait."""
        asked_at = self._clock.monotonic()
        tick = await self._store.tick(self._worker_id, self._interest)
        self._store_time.sample(tick.now_us, asked_at=asked_at)
        if not tick.open:
            raise LeaseLostError("another worker has taken the jobs")
        self._claimer.see(tick)
        self._handled &= {(signal.job_id, signal.claim_no, signal.kind) for signal in tick.signals}
        for signal in tick.signals:
            self._obey(signal)
        look_again = await self._rescue_the_dead(tick)
        parked = await self._store.park_unknown(self._interest) if tick.blocked else 0
        if tick.my_turn:
            await self._sweep()
        await self._early.wait(0.0 if parked >= MANY_PARKED else self._pause(look_again or parked > 0))

    def _pause(self, look_again: bool) -> float:
        pause = self._settings.tick_interval if self._lease.listening else self._settings.poll_interval
        return min(pause, SECOND_LOOK_SECONDS) if look_again else pause

    async def _sweep(self) -> None:
        started = self._clock.monotonic()
        if started >= self._sweep_from:
            await self._store.sweep()
            self._sweep_from = started + (self._clock.monotonic() - started) / SWEEP_SHARE

    async def _rescue_the_dead(self, tick: Tick) -> bool:
        dead, look_again = self._obituary.look(tick, self._clock.monotonic())
        for peer in dead:
            rescued = await self._store.rescue(peer)
            if rescued is not None:
                log.warning("worker.rescued", extra={"worker_id": peer.worker_id, "jobs": rescued})
                self._claimer.ask()
        return look_again

    def _obey(self, signal: Signal) -> None:
        asked = (signal.job_id, signal.claim_no, signal.kind)
        if asked in self._handled:
            return
        self._handled.add(asked)
        unstarted = self._timers.take(signal.job_id) or self._slots.take(signal.job_id)
        if unstarted is not None and unstarted.claim_no == signal.claim_no:
            self._completions.add(_ended(unstarted, signal))
            return
        if unstarted is not None:  # the signal was meant for an earlier claim
            self._timers.add([unstarted])
            return
        running = self._slots.find(signal.job_id)
        if running is not None and running.claim.claim_no == signal.claim_no and signal.kind == "cancel":
            running.cancel(Outcome.CANCELLED)


def _ended(claim: ClaimedJob, signal: Signal) -> Settlement:
    if signal.kind == "cancel":
        return Settlement(claim=claim, outcome=Outcome.CANCELLED, retention_days=1)
    return Settlement(claim=claim, outcome=Outcome.RELEASED, due=Due(at_us=signal.due_us))
