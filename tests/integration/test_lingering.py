"""Handlers that outlive their cancellation."""

import logging
import threading

import pytest

from eventflow import EventFlow, Job, JobContext, WorkerSettings
from tests.support.waiting import until

started, released = threading.Event(), threading.Event()
flow = EventFlow("lingering")


@flow.job
class Stubborn(Job):
    """Runs in a thread, which nobody can stop."""

    def execute(self, context: JobContext) -> None:
        started.set()
        released.wait(30)


async def test_worker_says_which_handlers_it_waits_for(
    dsn: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop that takes longer than the clean-up names the jobs that hold it up."""
    monkeypatch.setattr("eventflow.jobs.worker.incarnation.CLEAN_UP_SECONDS", 0.1)
    caplog.set_level(logging.ERROR, "eventflow.worker")
    async with flow.open(dsn) as app:
        try:
            async with app.worker(WorkerSettings(grace_period=0)) as worker:
                job_id = await app.jobs.schedule(Stubborn())
                await until(started.is_set)
                worker.stop()
                await until(lambda: "worker.waiting_for_handlers" in caplog.messages)
                [record] = [r for r in caplog.records if r.message == "worker.waiting_for_handlers"]
                assert vars(record)["jobs"] == [job_id]
                released.set()
        finally:
            released.set()
