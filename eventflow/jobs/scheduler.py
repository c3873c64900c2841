"""The scheduler: accepts jobs for later. One protocol, and the implementation over a job store."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol

from typing_extensions import Unpack

from eventflow.errors import InvalidScheduleError
from eventflow.ids import JobId
from eventflow.jobs.encoder import JobEncoder
from eventflow.jobs.job import Job
from eventflow.jobs.records import CancelOutcome, JobRecord, JobState, NewJob, RescheduleOutcome
from eventflow.jobs.store import JobStore
from eventflow.scheduling import ScheduleOptions, due_of

Notify = Literal["after_commit", "in_transaction"]
"""When workers are told of jobs that were scheduled on a connection of the caller's."""


class SupportsExecute(Protocol):
    """A database connection, as far as a caller of the scheduler needs to know; asyncpg's has this shape."""

    # Any: the driver's arguments and results, which only the driver reads
    def execute(self, query: str, *args: Any, timeout: float | None = None) -> Any:
        """Run a statement."""
        ...


class JobScheduler(Protocol):
    """Accepts jobs to run now, after a delay or at an instant; they run at least once, and not before."""

    async def schedule(
        self,
        job: Job,
        *,
        connection: SupportsExecute | None = None,
        notify: Notify = "after_commit",
        **options: Unpack[ScheduleOptions],
    ) -> JobId:
        """
        Schedule one job: now, ``at=`` an aware instant, or after a ``delay=``.

        Args:
            job: What to run.
            connection: Write in this connection's transaction: the job exists exactly if that commits. From
                ``app.transaction()``, workers are woken after the commit; with a connection of your own they
                find the job within a second.
            notify: ``"in_transaction"`` wakes workers with the commit of a connection of your own. It takes a
                lock of the whole cluster until then: not for many transactions a second.
            **options: See :class:`~eventflow.scheduling.ScheduleOptions`.

        Raises:
            InvalidScheduleError: an option makes no sense; nothing was written.
            InvalidMessageError: the job would not survive JSON; nothing was written.
            UnknownJobDefinitionError: its type is not registered; nothing was written.
            DatabaseUnavailableError: nothing was written.
            CommitUnknownError: the connection broke and it cannot be told.
        """
        ...

    async def schedule_many(
        self,
        jobs: Iterable[Job],
        *,
        connection: SupportsExecute | None = None,
        notify: Notify = "after_commit",
        **options: Unpack[ScheduleOptions],
    ) -> Sequence[JobId]:
        """Schedule many jobs with the same options, all or none; the ids are in the order of the jobs."""
        ...

    async def cancel(self, job_id: JobId) -> CancelOutcome:
        """
        Keep a job from running; one that a worker holds is asked to stop.

        Raises:
            DatabaseUnavailableError: nothing was written.
            CommitUnknownError: the connection broke and it cannot be told: look at the job, or ask again.
        """
        ...

    async def reschedule(
        self, job_id: JobId, *, at: datetime | None = None, delay: timedelta | None = None
    ) -> RescheduleOutcome:
        """Give a job that has not started another due time. Raises as :meth:`cancel` does."""
        ...

    async def get(self, job_id: JobId) -> JobRecord | None:
        """Look a job up; ``None`` if it never was or its history has expired."""
        ...

    async def find(
        self, *, state: JobState | None = None, queue: str | None = None, name: str | None = None, limit: int = 100
    ) -> Sequence[JobRecord]:
        """Jobs that match, newest first."""
        ...


class StoreJobScheduler:
    """
    A :class:`JobScheduler` over a job store.

    Args:
        store: Where jobs are kept.
        encoder: Checks and encodes them.
        wake: Told once jobs were committed, to wake workers.
    """

    def __init__(self, store: JobStore, encoder: JobEncoder, wake: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._encoder = encoder
        self._wake = wake

    async def schedule(
        self,
        job: Job,
        *,
        connection: SupportsExecute | None = None,
        notify: Notify = "after_commit",
        **options: Unpack[ScheduleOptions],
    ) -> JobId:
        new = self._encoder.encode(job, **options)
        await self._insert([new], connection, notify)
        return new.id

    async def schedule_many(
        self,
        jobs: Iterable[Job],
        *,
        connection: SupportsExecute | None = None,
        notify: Notify = "after_commit",
        **options: Unpack[ScheduleOptions],
    ) -> Sequence[JobId]:
        new = self._encoder.encode_all(jobs, **options)
        if new:
            await self._insert(new, connection, notify)
        return [job.id for job in new]

    async def cancel(self, job_id: JobId) -> CancelOutcome:
        return await self._store.cancel(JobId(job_id))

    async def reschedule(
        self, job_id: JobId, *, at: datetime | None = None, delay: timedelta | None = None
    ) -> RescheduleOutcome:
        due = due_of(at, delay)
        if due.at_us is None and due.delay_us is None:
            raise InvalidScheduleError("reschedule needs at= or delay=")
        outcome = await self._store.reschedule(JobId(job_id), due)
        self._wake()
        return outcome

    async def get(self, job_id: JobId) -> JobRecord | None:
        return await self._store.get(JobId(job_id))

    async def find(
        self, *, state: JobState | None = None, queue: str | None = None, name: str | None = None, limit: int = 100
    ) -> Sequence[JobRecord]:
        return await self._store.find(state=state, queue=queue, name=name, limit=limit)

    async def _insert(self, jobs: Sequence[NewJob], connection: SupportsExecute | None, notify: Notify) -> None:
        if connection is not None or notify != "after_commit":
            raise InvalidScheduleError(
                f"{type(self).__name__} writes in no transaction: connection= and notify= are for PostgresJobScheduler"
            )
        await self._store.insert(jobs)
        self._wake()
