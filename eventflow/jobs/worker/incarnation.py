"""One incarnation of a worker: its services, from the first claim to the last completion."""

import logging
from collections.abc import Iterable, Sequence
from random import Random

import anyio

from eventflow.clock import Clock
from eventflow.errors import DatabaseError, LeaseLostError
from eventflow.ids import WorkerId
from eventflow.jobs.records import ClaimedJob, Interest, Outcome, Settlement
from eventflow.jobs.runner import JobRunner
from eventflow.jobs.store import JobStore
from eventflow.jobs.unit_of_work import Commits
from eventflow.jobs.worker.claiming import Claimer, Throughput
from eventflow.jobs.worker.completion import Completions
from eventflow.jobs.worker.lease import Lease, LeaseGuard
from eventflow.jobs.worker.quarantine import Quarantine
from eventflow.jobs.worker.settings import WorkerSettings
from eventflow.jobs.worker.slots import Seats, Slots
from eventflow.jobs.worker.store_time import StoreTime
from eventflow.jobs.worker.timers import Timers
from eventflow.jobs.worker.watch import Watch
from eventflow.supervision import Supervisor, background_tasks

log = logging.getLogger("eventflow.worker")

CLEAN_UP_SECONDS = 5.0
"""Longest time for cancelled handlers to end, and again for the last completions to be written."""
ANSWER_SECONDS = 0.5
"""How long the store may take to answer at all; if it does not, the last completions are not waited for."""
UNANSWERED_SECONDS = 1.0
"""How long a stopping worker looks for claims whose answer it did not wait for."""
MAINTENANCE_SECONDS = 3600.0


class Incarnation:
    """
    The services of a worker under one identity and one lease.

    Claimer → Timers → Slots → Completions is the way of a job; Watch and LeaseGuard stand beside it.
    """

    def __init__(
        self,
        worker_id: WorkerId,
        lease: Lease,
        *,
        store: JobStore,
        commits: Commits,
        runner: JobRunner,
        interest: Interest,
        retentions: Sequence[int],
        settings: WorkerSettings,
        clock: Clock,
        rng: Random,
        seats: Seats,
    ) -> None:
        self._store = store
        self._retentions = retentions
        self._settings = settings
        self._clock = clock
        self._supervisor = Supervisor(clock, rng, fatal=(LeaseLostError,))
        store_time = StoreTime(clock)
        throughput = Throughput(clock)
        self._completions = Completions(
            store,
            worker_id,
            commits=commits,
            clock=clock,
            rng=rng,
            linger=settings.linger,
            batch=settings.settle_batch,
            written=self._room_changed,
        )
        self._slots = Slots(
            seats=seats,
            runner=runner,
            completions=self._completions,
            store_time=store_time,
            clock=clock,
            patience=settings.queue_patience,
            freed=self._room_changed,
            finished=throughput.count,
        )
        self._timers = Timers(
            slots=self._slots,
            store_time=store_time,
            read_time=store.now_us,
            clock=clock,
            fired=self._room_changed,
        )
        quarantine = Quarantine(slots=self._slots, timers=self._timers, completions=self._completions, clock=clock)
        self._claimer = Claimer(
            store,
            worker_id,
            interest,
            slots=self._slots,
            timers=self._timers,
            completions=self._completions,
            store_time=store_time,
            throughput=throughput,
            quarantine=quarantine,
            settings=settings,
            clock=clock,
            rng=rng,
        )
        self._watch = Watch(
            store,
            worker_id,
            interest,
            lease=lease,
            claimer=self._claimer,
            slots=self._slots,
            timers=self._timers,
            completions=self._completions,
            store_time=store_time,
            settings=settings,
            clock=clock,
        )
        self._guard = LeaseGuard(lease, clock=clock, fence_after=settings.fence_after)

    def wake(self, payload: str) -> None:
        """Act on a notification: ``""`` there may be jobs, ``"signal"`` somebody asks something."""
        if payload == "signal":
            self._watch.look_now()
        else:
            self._claimer.notify()

    async def run(self, stop: anyio.Event) -> None:
        """
        Work until asked to stop, then drain.

        Raises:
            LeaseLostError: the lease is gone; every handler has been cancelled and nothing of it was written.
        """
        try:
            await self._work(stop)
        except BaseExceptionGroup as errors:  # more than one service noticed
            lost, others = errors.split(LeaseLostError)
            if lost is None or others is not None:
                raise
            raise LeaseLostError("noticed by several services") from errors

    async def _work(self, stop: anyio.Event) -> None:
        async with background_tasks() as group:
            repeat = self._supervisor.repeat
            group.start_soon(repeat, "guard", self._guard.guard_step)
            group.start_soon(repeat, "settle", self._completions.settle_step)
            group.start_soon(repeat, "watch", self._watch.watch_step)
            group.start_soon(repeat, "maintain", self._maintain_step)
            try:
                async with background_tasks() as intake:
                    intake.start_soon(repeat, "claim", self._claimer.claim_step)
                    intake.start_soon(repeat, "timers", self._timers.fire_step)
                    intake.start_soon(repeat, "sharpen", self._timers.sharpen_step)
                    intake.start_soon(repeat, "give_back", self._slots.give_back_step)
                    await stop.wait()
                    intake.cancel_scope.cancel()
                await self._drain()
            finally:
                self._slots.leave()
                await self._report_lingering(stop)
                group.cancel_scope.cancel()

    def _room_changed(self) -> None:
        self._claimer.room_changed()  # made after slots and timers, which call this

    async def _drain(self) -> None:
        """Give back what has not started, let running jobs end within their grace period, write what came of them."""
        until = self._clock.monotonic() + self._settings.grace_period
        self._give_back(self._timers.take_all())
        self._give_back(self._slots.take_line())
        async with background_tasks() as group:
            group.start_soon(self._give_back_unanswered)
            if not await self._slots.wait_until_idle(self._settings.grace_period):
                self._slots.cancel_all()
                await self._slots.wait_until_idle(CLEAN_UP_SECONDS)
                group.cancel_scope.cancel()  # the grace period is over: closing the worker gives them back too
        await self._write_the_rest(until)

    async def _write_the_rest(self, until: float) -> None:
        """Wait for the last completions; once the grace period is over, only if the store answers at all."""
        left = until - self._clock.monotonic()
        if await self._completions.wait_until_empty(min(left, CLEAN_UP_SECONDS)):
            return
        if left < CLEAN_UP_SECONDS and await self._completions.store_answers(ANSWER_SECONDS):
            await self._completions.wait_until_empty(CLEAN_UP_SECONDS)

    def _give_back(self, claims: Iterable[ClaimedJob]) -> None:
        for claim in claims:
            self._completions.add(Settlement(claim=claim, outcome=Outcome.RELEASED))

    async def _report_lingering(self, stop: anyio.Event) -> None:
        """
        Name the handlers that do not give way, and threads: each takes a slot until it ends.

        A worker that stops keeps its lease until then, so that nobody runs their jobs beside them.
        """
        with anyio.CancelScope(shield=True):
            if not await self._slots.wait_until_idle(CLEAN_UP_SECONDS):
                jobs = sorted(set(self._slots.ids()))
                log.error("worker.waiting_for_handlers", extra={"jobs": jobs})
                if stop.is_set():
                    await self._slots.wait_until_idle(None)

    async def _give_back_unanswered(self) -> None:
        """Give back the jobs of a claim that was cut off just now, or before."""
        with self._clock.deadline(min(UNANSWERED_SECONDS, self._settings.grace_period)):
            try:
                self._give_back(await self._claimer.unanswered())
            except DatabaseError as exc:  # then closing the worker gives them back, or its rescue
                log.warning("claim.not_given_back", extra={"error": str(exc)})

    async def _maintain_step(self) -> None:
        await self._store.maintain(self._retentions)
        await self._clock.sleep(MAINTENANCE_SECONDS)
