"""Takes jobs from the store: when there may be some, and no more than can start soon."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from random import Random

from eventflow.clock import Clock, Wakeup
from eventflow.errors import LeaseLostError
from eventflow.failpoints import failpoint
from eventflow.ids import WorkerId
from eventflow.jobs.records import SUSPECT_CRASHES, ClaimBatch, ClaimedJob, Interest, Outcome, Settlement, Tick
from eventflow.jobs.store import JobStore
from eventflow.jobs.worker.completion import Completions
from eventflow.jobs.worker.quarantine import Quarantine
from eventflow.jobs.worker.settings import WorkerSettings
from eventflow.jobs.worker.slots import Slots
from eventflow.jobs.worker.store_time import StoreTime
from eventflow.jobs.worker.timers import Timers

log = logging.getLogger("eventflow.worker")

PREFETCH_SECONDS = 0.03
"""Jobs are held beyond the free slots for so long at the measured throughput: well within a job's patience in line."""
LEAD = 1.25
"""The next claim is sent while the line lasts so many times as long as claims have taken lately."""
SUSPICION_SECONDS = 15.0
"""How long after a claim without an answer the store may still commit it."""
ADOPTION_SECONDS = 1.0
"""Between two looks for the jobs of such a claim."""
MOST_UNWRITTEN = 2000
"""While more ended claims than this wait to be written, nothing is claimed."""
HERD_SECONDS = 0.003
"""A worker woken for nothing lets others go first by up to this, the next time."""


class Throughput:
    """Jobs a second that leave the slots, averaged over the last tenths of a second."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._count = 0
        self._since = clock.monotonic()
        self._rate = 0.0

    def count(self) -> None:
        """One more."""
        self._count += 1

    def per_second(self) -> float:
        """The current rate."""
        elapsed = self._clock.monotonic() - self._since
        if elapsed >= 0.05:
            self._rate = (self._rate + self._count / elapsed) / 2
            self._count, self._since = 0, self._since + elapsed
        return self._rate


class Claimer:
    """
    Decides when to claim and how much.

    It claims when a notification or a look at the store says that there may be something, when a due time comes
    near, and while the last claim was full. Full slots let everything wait: they ask by themselves when free.
    """

    def __init__(
        self,
        store: JobStore,
        worker_id: WorkerId,
        interest: Interest,
        *,
        slots: Slots,
        timers: Timers,
        completions: Completions,
        store_time: StoreTime,
        throughput: Throughput,
        quarantine: Quarantine,
        settings: WorkerSettings,
        clock: Clock,
        rng: Random,
    ) -> None:
        self._store = store
        self._worker_id = worker_id
        self._interest = interest
        self._slots = slots
        self._timers = timers
        self._completions = completions
        self._store_time = store_time
        self._throughput = throughput
        self._quarantine = quarantine
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._wakeup = Wakeup(clock)
        self._asked = True  # to look once at the start
        self._notified = False
        self._woken_for_nothing = 0
        self._claim_seconds = 0.0
        self._is_claiming = False
        self._low_water = 0  # so many jobs in line last until a claim is answered; a claim before would be for few
        self._more_ready = False
        self._more_ahead = False
        self._parked = False
        self._next_us: int | None = None
        self._suspicious_until: float | None = None

    def ask(self) -> None:
        """Claim as soon as there is room."""
        self._asked = True
        self._wakeup.set()

    def notify(self) -> None:
        """Somebody committed jobs; another worker may be faster."""
        self._notified = True
        self._wakeup.set()

    def see(self, tick: Tick) -> None:
        """Take note of a look at the store."""
        self._next_us = tick.next_us
        self._parked = tick.parked
        self._asked = self._asked or tick.parked
        if self._suspicious_until is None:
            self._quarantine.see(tick)
        self._wakeup.set()

    def room_changed(self) -> None:
        """A slot was freed or timers fired."""
        if self._is_claiming or (self._slots.in_line > self._low_water and not self._quarantine.is_closed):
            return  # as after most jobs
        if self._quarantine.is_closed or (self._wants_more() and (self._next_us is not None or self._has_reason())):
            self._wakeup.set()

    async def claim_step(self) -> None:
        """Wait for a reason, claim once, and pass the jobs on."""
        await self._wait_for_reason()
        if self._suspicious_until is not None:
            await self._adopt_unanswered(self._suspicious_until)
        if self._quarantine.may_take:
            await self._claim_suspect()
        else:
            await self._claim_others()

    async def _claim_suspect(self) -> None:
        batch = await self._answered(lambda: self._store.claim_suspect(self._worker_id, self._interest))
        self._quarantine.took(batch.jobs)
        self._timers.add(batch.jobs)

    async def _claim_others(self) -> None:
        ready, ahead = self._room()
        if not ready:
            return  # adopted jobs have taken it
        self._asked = self._notified = False
        batch = await self._answered(
            lambda: self._store.claim(
                self._worker_id,
                self._interest,
                ready=ready,
                ahead=ahead,
                horizon_us=int(self._settings.claim_ahead * 1_000_000),
                parked=self._parked,
            )
        )
        taken_ready = sum(claim.ready_us <= batch.split_us for claim in batch.jobs)
        self._more_ready = taken_ready >= ready
        self._more_ahead = len(batch.jobs) - taken_ready >= ahead
        self._next_us = batch.next_us
        self._woken_for_nothing = 0 if batch.jobs else min(self._woken_for_nothing + 1, 5)
        self._timers.add(batch.jobs)

    async def _answered(self, claim: Callable[[], Awaitable[ClaimBatch]]) -> ClaimBatch:
        asked_at = self._clock.monotonic()
        failpoint("claim.sending")
        self._is_claiming = True
        try:
            batch = await claim()
        except LeaseLostError:
            raise
        except BaseException:
            self._asked = True
            self._suspicious_until = self._clock.monotonic() + SUSPICION_SECONDS
            self._quarantine.give_up()  # no suspect is alone among jobs that may still turn up
            raise
        finally:
            self._is_claiming = False
        failpoint("claim.committed")
        self._claim_seconds = (self._claim_seconds + self._clock.monotonic() - asked_at) / 2
        self._low_water = int(self._throughput.per_second() * self._claim_seconds * LEAD)
        self._store_time.sample(batch.now_us, asked_at=asked_at)
        return batch

    async def _wait_for_reason(self) -> None:
        while not self._has_reason():
            pause = self._quarantine.seconds_left if self._quarantine.is_closed else self._until_next()
            if self._suspicious_until is None:
                await self._wakeup.wait(pause)
            else:
                await self._wakeup.wait(ADOPTION_SECONDS if pause is None else min(pause, ADOPTION_SECONDS))
                self._asked = True  # to look for the jobs of the claim that was not answered
        if self._notified and not self._asked and self._woken_for_nothing:
            await self._clock.sleep(self._rng.uniform(0, HERD_SECONDS * self._woken_for_nothing / 5))

    def _has_reason(self) -> bool:
        if self._quarantine.may_take:
            return True
        if not self._wants_more():
            return False
        if self._asked or self._notified or self._more_ready or self._until_next() == 0.0:
            return True
        return self._more_ahead and self._room()[1] * 2 >= self._settings.concurrency

    def _wants_more(self) -> bool:
        """Whether there is room, and the line will not last much longer: what comes now would stand behind it."""
        return self._slots.in_line <= self._low_water and self._room()[0] > 0

    def _until_next(self) -> float | None:
        """Seconds until the next job comes within reach; ``None`` if none is known or none is wanted."""
        if self._next_us is None or not self._wants_more():
            return None
        return max(0.0, self._store_time.seconds_until(self._next_us) - self._settings.claim_ahead)

    def _room(self) -> tuple[int, int]:
        if self._completions.backlog > MOST_UNWRITTEN or self._quarantine.is_closed:
            return 0, 0
        ready = self._slots.free + self._prefetch() - self._slots.in_line
        ahead = self._settings.concurrency + self._prefetch() - len(self._timers)
        return max(0, ready), max(0, ahead)

    def _prefetch(self) -> int:
        return min(self._settings.max_prefetch, int(self._throughput.per_second() * PREFETCH_SECONDS))

    async def unanswered(self) -> Sequence[ClaimedJob]:
        """The jobs that a claim without an answer took for this worker; empty if all were answered."""
        if self._suspicious_until is None:
            return []
        known = [*self._slots.ids(), *self._timers.ids(), *self._completions.ids()]
        return await self._store.claims(self._worker_id, known)

    async def _adopt_unanswered(self, until: float) -> None:
        is_last_look = self._clock.monotonic() >= until
        adopted = await self.unanswered()
        if adopted:
            log.info("claim.adopted", extra={"worker_id": self._worker_id, "jobs": len(adopted)})
            suspects = [claim for claim in adopted if claim.crashes >= SUSPECT_CRASHES]  # would not run alone now
            for claim in suspects:
                self._completions.add(Settlement(claim=claim, outcome=Outcome.RELEASED))
            self._timers.add(claim for claim in adopted if claim not in suspects)
        if is_last_look:
            self._suspicious_until = None
