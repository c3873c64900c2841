"""The port between jobs and where they are kept. Its docstrings are the contract of every implementation."""

from collections.abc import Sequence
from typing import Protocol

from eventflow.ids import JobId, WorkerId
from eventflow.jobs.records import (
    CancelOutcome,
    ClaimBatch,
    ClaimedJob,
    Interest,
    JobRecord,
    JobState,
    NewJob,
    Peer,
    RescheduleOutcome,
    Settlement,
    Tick,
    WorkerRecord,
)
from eventflow.scheduling import Due


class JobStore(Protocol):
    """Keeps jobs from the moment they are scheduled until their history expires."""

    # What schedulers need.

    async def insert(self, jobs: Sequence[NewJob]) -> None:
        """
        Add jobs, all or none. A delay counts from this insert, by the store's clock.

        Raises:
            DatabaseUnavailableError: nothing was written.
            CommitUnknownError: the connection broke and it cannot be told.
        """
        ...

    async def cancel(self, job_id: JobId) -> CancelOutcome:
        """
        Keep a waiting job from running; ask the worker of a claimed one to stop it.

        A request holds for that claim: however it ends without success, the job does not wait again.

        Raises:
            DatabaseUnavailableError: nothing was written.
            CommitUnknownError: the connection broke and it cannot be told; ask again.
        """
        ...

    async def reschedule(self, job_id: JobId, due: Due) -> RescheduleOutcome:
        """Give a job that has not started another due time. Raises as :meth:`cancel` does."""
        ...

    async def get(self, job_id: JobId) -> JobRecord | None:
        """Look a job up, in whatever state; ``None`` if it never was or its history has expired."""
        ...

    async def find(
        self, *, state: JobState | None = None, queue: str | None = None, name: str | None = None, limit: int = 100
    ) -> Sequence[JobRecord]:
        """Jobs that match, newest first."""
        ...

    # What workers need. A worker that was closed can write nothing for its jobs any more.

    async def open_worker(self, worker: WorkerRecord) -> None:
        """Register an incarnation; repeating it changes nothing."""
        ...

    async def beat(self, worker_id: WorkerId) -> bool:
        """Show that it is alive; false if it has been closed."""
        ...

    async def now_us(self) -> int:
        """The store's time, in microseconds since the epoch."""
        ...

    async def tick(self, worker_id: WorkerId, interest: Interest) -> Tick:
        """Look at the time, at jobs to claim, at other workers and at signals. Writes nothing."""
        ...

    async def claim(
        self, worker_id: WorkerId, interest: Interest, *, ready: int, ahead: int, horizon_us: int, parked: bool = False
    ) -> ClaimBatch:
        """
        Take up to *ready* jobs that are ready and up to *ahead* that will be within *horizon_us*.

        With *parked*, those too that other workers put aside as unknown to them. Never jobs that are suspected of
        killing workers.

        Two workers never hold the same job. By priority, and within a queue by the time they are ready; queues of
        equal priority may take turns. Jobs whose name or queue the worker has no interest in are left alone. Counts a
        claim and an attempt.

        Raises:
            LeaseLostError: the worker has been closed.
        """
        ...

    async def claim_suspect(self, worker_id: WorkerId, interest: Interest) -> ClaimBatch:
        """Take one job, if any, that was held by workers when they died. It is meant to run with no other."""
        ...

    async def park_unknown(self, interest: Interest) -> int:
        """Put some ready jobs that are outside *interest* out of the way of claims; returns how many."""
        ...

    async def sweep(self) -> int:
        """
        Find jobs that claims have passed by, and lines whose job has ended without going on, if the store knows such.

        Returns how many are ready again.
        """
        ...

    async def claims(self, worker_id: WorkerId, known: Sequence[JobId]) -> Sequence[ClaimedJob]:
        """Claims that the store has for this worker besides the known ones: those whose answer was lost."""
        ...

    async def settle(self, worker_id: WorkerId, settlements: Sequence[Settlement]) -> set[JobId]:
        """
        End claims, with their follow-up jobs, in one transaction.

        Returns the ids of those that were still this worker's by this claim number. For the others nothing was
        changed and no follow-up was inserted. Safe to repeat.
        """
        ...

    async def rescue(self, peer: Peer) -> int | None:
        """
        Close a worker that is as *peer* shows it, and let its jobs wait again.

        They are ready now, their attempts given back, a crash counted; at the fifth a job becomes a dead letter
        instead. Returns how many they are; ``None``: the worker has beaten since, or is closed.
        """
        ...

    async def close_worker(self, worker_id: WorkerId) -> int:
        """Close a worker in good order; what it still holds waits again, attempts given back. Safe to repeat."""
        ...

    async def maintain(self, retention_days: Sequence[int]) -> None:
        """Make room for the history of jobs kept so many days, and drop what has expired."""
        ...
