"""The worker: one incarnation after the other, until it is stopped."""

import logging
import os
import socket
from collections.abc import Callable, Sequence
from random import Random

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from eventflow.clock import Clock
from eventflow.errors import DatabaseError, DatabaseUnavailableError, LeaseLostError
from eventflow.ids import WorkerId
from eventflow.jobs.records import Interest, WorkerRecord
from eventflow.jobs.runner import JobRunner
from eventflow.jobs.store import JobStore
from eventflow.jobs.unit_of_work import Commits
from eventflow.jobs.worker.incarnation import Incarnation
from eventflow.jobs.worker.lease import Presence
from eventflow.jobs.worker.settings import WorkerSettings
from eventflow.jobs.worker.slots import Seats
from eventflow.release import installed_release
from eventflow.supervision import background_tasks

log = logging.getLogger("eventflow.worker")

RETURN_SECONDS = 0.5
"""Longest pause before a worker that lost its database or lease registers again."""


class Worker:
    """
    Claims jobs and runs them until stopped.

    Args:
        store: Where the jobs are.
        commits: Writes what they change.
        presence: Keeps the worker alive in the eyes of others, and listens.
        runner: Runs one job.
        interest: Its queues, and the stored names and versions it can run.
        retentions: Days for which some job type is kept in history.
        settings: How it behaves.
        clock: All its waiting goes by this.
        rng: Source of jitter.
        new_id: Makes the identity of each incarnation.
    """

    def __init__(
        self,
        store: JobStore,
        commits: Commits,
        presence: Presence,
        runner: JobRunner,
        *,
        interest: Interest,
        retentions: Sequence[int],
        settings: WorkerSettings,
        clock: Clock,
        rng: Random,
        new_id: Callable[[], WorkerId] = WorkerId.new,
    ) -> None:
        self._store = store
        self._commits = commits
        self._presence = presence
        self._runner = runner
        self._interest = interest
        self._retentions = retentions
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._new_id = new_id
        self._stop = anyio.Event()
        self._registering = anyio.CancelScope()
        self._incarnation: Incarnation | None = None

    def stop(self) -> None:
        """Stop in good order: claim nothing more, give running jobs their grace period, give back the rest."""
        self._stop.set()
        if self._incarnation is None:
            self._registering.cancel()

    def wake(self, payload: str = "") -> None:
        """There may be jobs (or, with ``"signal"``, somebody asks something); what a notification says too."""
        if self._incarnation is not None:
            self._incarnation.wake(payload)

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """
        Run jobs until :meth:`stop`, or cancellation, which gives no grace.

        A worker that loses its lease cancels its handlers and goes on under a new identity; one whose database
        is away waits for it. Reports ``started()`` when it claims for the first time.
        """
        seats = Seats(self._settings.concurrency)
        async with background_tasks() as seats.group:  # it outlives incarnations, and waits for the last handler
            await self._run(seats, task_status)

    async def _run(self, seats: Seats, task_status: TaskStatus[None]) -> None:
        reported = away = False
        while not self._stop.is_set():
            record = self._record()
            self._registering = anyio.CancelScope()
            try:
                with self._registering:  # without an incarnation there is nothing to end in good order
                    async with self._presence.attend(record, self.wake) as lease:
                        log.info("worker.started", extra={"worker_id": record.id, "concurrency": record.concurrency})
                        away = False
                        self._incarnation = Incarnation(
                            record.id,
                            lease,
                            store=self._store,
                            commits=self._commits,
                            runner=self._runner,
                            interest=self._interest,
                            retentions=self._retentions,
                            settings=self._settings,
                            clock=self._clock,
                            rng=self._rng,
                            seats=seats,
                        )
                        if not reported:
                            task_status.started()
                            reported = True
                        try:
                            await self._incarnation.run(self._stop)
                        finally:
                            self._incarnation = None
                    log.info("worker.stopped", extra={"worker_id": record.id})
            except LeaseLostError as exc:
                log.warning("worker.lease_lost", extra={"worker_id": record.id, "reason": str(exc)})
                await self._pause()
            except DatabaseError as exc:
                if not reported and not isinstance(exc, DatabaseUnavailableError):
                    raise  # it never worked, and waiting will not help
                if not away:
                    log.warning("worker.database_away", extra={"worker_id": record.id, "error": str(exc)})
                away = True
                await self._pause()

    def _record(self) -> WorkerRecord:
        return WorkerRecord(
            self._new_id(),
            socket.gethostname(),
            os.getpid(),
            installed_release(),
            self._settings.queues,
            self._settings.concurrency,
        )

    async def _pause(self) -> None:
        with self._clock.deadline(RETURN_SECONDS * self._rng.uniform(0.5, 1.0)):
            await self._stop.wait()
