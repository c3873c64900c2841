"""Handlers that do what handlers should not."""

import asyncio

import anyio.lowlevel

from eventflow import EventFlow, Job, JobContext, JobState, RetryPolicy
from tests.support.waiting import eventually

flow = EventFlow("handlers")


@flow.job(retry=RetryPolicy(max_attempts=1))
class CancelsItself(Job):
    async def execute(self, context: JobContext) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await anyio.lowlevel.checkpoint()


@flow.job
class Fine(Job):
    async def execute(self, context: JobContext) -> None:
        await anyio.lowlevel.checkpoint()


async def test_handler_that_cancels_its_own_task_fails_like_any_other(dsn: str) -> None:
    """It is a failed attempt, not a job that runs for ever; its slot serves the next job."""
    async with flow.open(dsn) as app, app.worker():
        job_id = await app.jobs.schedule(CancelsItself())

        async def dead() -> bool:
            record = await app.jobs.get(job_id)
            return record is not None and record.state is JobState.DEAD

        await eventually(dead)
        fine = await app.jobs.schedule(Fine())

        async def succeeded() -> bool:
            record = await app.jobs.get(fine)
            return record is not None and record.state is JobState.SUCCEEDED

        await eventually(succeeded)
