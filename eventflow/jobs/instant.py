"""The scheduler that does not schedule: runs each job at once, in the call."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import anyio
from typing_extensions import Unpack

from eventflow.clock import Clock, to_microseconds
from eventflow.errors import InvalidScheduleError
from eventflow.eventstore import Changes, InMemoryEventStore
from eventflow.eventstore.in_memory import refuse_connection
from eventflow.ids import JobId
from eventflow.jobs.encoder import JobEncoder
from eventflow.jobs.job import Job
from eventflow.jobs.records import (
    CancelOutcome,
    ClaimedJob,
    Ending,
    JobRecord,
    JobState,
    NewJob,
    Outcome,
    RescheduleOutcome,
)
from eventflow.jobs.runner import JobRunner
from eventflow.jobs.scheduler import Notify, SupportsExecute
from eventflow.scheduling import Due, ScheduleOptions

log = logging.getLogger("eventflow.jobs")


class InstantJobScheduler:
    """
    Runs a job where it is scheduled, through JSON as a stored one, and returns when it has run.

    For tests and prototypes: a delay is ignored, with a warning; a failure is logged, not raised and not tried
    again; nothing can be looked up or cancelled. Follow-up jobs run at once too. Deadlines never come.
    """

    def __init__(self, encoder: JobEncoder, runner: JobRunner, clock: Clock) -> None:
        self._encoder = encoder
        self._runner = runner
        self._clock = clock

    async def schedule(
        self,
        job: Job,
        *,
        connection: SupportsExecute | None = None,
        notify: Notify = "after_commit",
        **options: Unpack[ScheduleOptions],
    ) -> JobId:
        _refuse_transaction(connection, notify)
        new = self._encoder.encode(job, **options)
        await self.run([new])
        return new.id

    async def schedule_many(
        self,
        jobs: Iterable[Job],
        *,
        connection: SupportsExecute | None = None,
        notify: Notify = "after_commit",
        **options: Unpack[ScheduleOptions],
    ) -> Sequence[JobId]:
        _refuse_transaction(connection, notify)
        new = self._encoder.encode_all(jobs, **options)
        await self.run(new)
        return [job.id for job in new]

    async def cancel(self, job_id: JobId) -> CancelOutcome:
        return CancelOutcome.NOT_FOUND

    async def reschedule(
        self, job_id: JobId, *, at: datetime | None = None, delay: timedelta | None = None
    ) -> RescheduleOutcome:
        return RescheduleOutcome.NOT_FOUND

    async def get(self, job_id: JobId) -> JobRecord | None:
        return None

    async def find(
        self, *, state: JobState | None = None, queue: str | None = None, name: str | None = None, limit: int = 100
    ) -> Sequence[JobRecord]:
        return []

    async def run(self, jobs: Sequence[NewJob]) -> None:
        """Run encoded jobs now, one after the other."""
        for job in jobs:
            if job.due != Due():
                log.warning("job.ran_instead_of_waiting", extra={"job_id": job.id, "job": job.name})
            now_us = to_microseconds(self._clock.now())
            settlement = await self._runner.run(_claimed(job, now_us), started_us=now_us)
            if settlement.outcome is Outcome.SUCCEEDED and not settlement.is_written:
                await self.run(settlement.follow_ups)


class InstantCommits:
    """
    Implements :class:`~eventflow.jobs.Commits`: changes are written, then their jobs run.

    Deadlines never come: at once, each would pass before anything could be done to keep it.

    Args:
        events: Where changes are written.
        run: Runs jobs now.
    """

    def __init__(self, events: InMemoryEventStore, run: Callable[[Sequence[NewJob]], Awaitable[None]]) -> None:
        self._events = events
        self._run = run

    async def commit(
        self, changes: Changes, jobs: Sequence[NewJob] = (), *, ends: Ending | None = None, connection: Any = None
    ) -> None:
        refuse_connection(connection)
        self._events.write(changes)
        left_out = set(changes.deadlines.values())
        if changes.step is not None:
            left_out.add(changes.step.following)  # every event has had its job when it was written
        with anyio.CancelScope(shield=True):
            await self._run([job for job in jobs if job.id not in left_out])


def _claimed(job: NewJob, now_us: int) -> ClaimedJob:
    return ClaimedJob(
        id=job.id,
        claim_no=1,
        attempt=1,
        crashes=0,
        due_us=now_us,
        ready_us=now_us,
        name=job.name,
        version=job.version,
        payload=job.payload.decode(),
        headers=job.headers.decode(),
        retry=job.retry.decode() if job.retry else None,
        timeout_us=job.timeout_us,
    )


def _refuse_transaction(connection: SupportsExecute | None, notify: Notify) -> None:
    if connection is not None or notify != "after_commit":
        raise InvalidScheduleError("InstantJobScheduler writes in no transaction: connection= and notify= are refused")
