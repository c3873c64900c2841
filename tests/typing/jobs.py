"""What users' code infers about jobs: checked, never run.

An ignored error is one that the checker must find: an ignore that nothing needs is an error itself.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import assert_type

from eventflow import (
    CancelOutcome,
    EventFlow,
    Identity,
    Job,
    JobContext,
    JobId,
    JobRecord,
    JobScheduler,
    JobState,
    OnError,
    PublishCommandJob,
    RescheduleOutcome,
    RetryPolicy,
    Services,
    StandaloneCommand,
    Worker,
    WorkerSettings,
    job_version,
)


class OrderId(Identity):
    """An identity."""


class Mailer:
    """A service."""

    async def send(self, text: str) -> None:
        """Send."""


@asynccontextmanager
async def lifespan(services: Services) -> AsyncGenerator[None]:
    services.register_value(Mailer, Mailer())
    yield


flow = EventFlow("shop", lifespan=lifespan)


@flow.job(queue="mail", retry=RetryPolicy(max_attempts=3, on={OSError: OnError.RETRY}), timeout=timedelta(seconds=30))
@job_version("SendReminder", 2)
class SendReminder(Job):
    """A job with options."""

    order_id: OrderId

    async def execute(self, context: JobContext) -> None:
        mailer = await context.services.aget(Mailer)
        assert_type(mailer, Mailer)
        assert_type(context.attempt, int)
        assert_type(context.schedule(SendReminder(order_id=self.order_id), delay=timedelta(1)), JobId)
        await mailer.send(self.order_id)


@flow.job
class Clean(Job):
    """A job that runs in a thread."""

    def execute(self, context: JobContext) -> None:
        assert_type(context.services.get(Mailer), Mailer)


@flow.job(prioriti=1)  # type: ignore[call-overload]
class Misspelt(Job):
    """A job with an option that does not exist."""

    async def execute(self, context: JobContext) -> None: ...


class WrongResult(Job):
    """A job that returns something."""

    async def execute(self, context: JobContext) -> int:  # type: ignore[override]
        return 1


def decorated_jobs_stay_what_they_are(order_id: OrderId) -> None:
    job = SendReminder(order_id=order_id)
    assert_type(job, SendReminder)
    assert_type(job.order_id, OrderId)
    SendReminder(order_id)  # type: ignore[call-arg]
    SendReminder(order_id="order-1")  # type: ignore[arg-type]
    job.order_id = order_id  # type: ignore[misc]


async def schedulers_are_one_protocol(scheduler: JobScheduler, order_id: OrderId) -> None:
    job_id = await scheduler.schedule(SendReminder(order_id=order_id), delay=timedelta(days=1), tags=("a", "b"))
    assert_type(job_id, JobId)
    assert_type(await scheduler.schedule_many([Clean(), SendReminder(order_id=order_id)]), Sequence[JobId])
    assert_type(await scheduler.cancel(job_id), CancelOutcome)
    assert_type(await scheduler.reschedule(job_id, delay=timedelta(1)), RescheduleOutcome)
    assert_type(await scheduler.get(job_id), JobRecord | None)
    assert_type(await scheduler.find(state=JobState.DEAD), Sequence[JobRecord])
    await scheduler.get("job-1")  # type: ignore[arg-type]
    await scheduler.schedule(order_id)  # type: ignore[arg-type]


async def applications_open_and_work(order_id: OrderId) -> None:
    async with flow.open("memory:") as app:
        scheduler: JobScheduler = app.jobs
        await schedulers_are_one_protocol(scheduler, order_id)
        async with app.worker(WorkerSettings(concurrency=5)) as worker:
            assert_type(worker, Worker)
        async with app.transaction() as connection:
            await app.jobs.schedule(Clean(), connection=connection)
            await connection.execute("select 1")
        await app.jobs.schedule(Clean(), notify="sometimes")  # type: ignore[arg-type]
        assert_type(await app.run_due(), int)


class Rebuild(StandaloneCommand[int]):
    """A command."""


def commands_are_jobs_too() -> None:
    job = PublishCommandJob.create(Rebuild())
    assert_type(job, PublishCommandJob)
    PublishCommandJob.create(Clean())  # type: ignore[arg-type]
