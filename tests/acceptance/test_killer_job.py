"""A job that kills its process takes no others with it, and comes to an end."""

import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from eventflow import JobState, WorkerSettings
from tests.acceptance.killer import Kill, Quick, flow
from tests.acceptance.workers import ROOT
from tests.support.journal import ended

BESIDE = 500
BYSTANDER = WorkerSettings(queues=("nothing",))
"""A worker that only rescues, as one of another queue would."""


@asynccontextmanager
async def restarted_worker(dsn: str, log: Path) -> AsyncGenerator[None]:
    """A worker process that has room for all jobs at once, and is started again whenever it dies."""
    command = [sys.executable, "-m", "eventflow", "worker", "tests.acceptance.killer:flow", "--concurrency=600"]

    async def keep_running() -> None:
        with log.open("wb") as stream:
            while True:
                async with await anyio.open_process(
                    command,
                    cwd=ROOT,
                    env={**os.environ, "EVENTFLOW_DSN": dsn},
                    stdout=stream.fileno(),
                    stderr=stream.fileno(),
                ) as process:
                    await process.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(keep_running)
        yield
        group.cancel_scope.cancel()


async def test_a_job_that_kills_its_process_five_times_is_dead_and_those_beside_it_are_not(
    dsn: str, tmp_path: Path
) -> None:
    """It is a dead letter; 500 jobs that were claimed together with it succeed, each in its first attempt."""
    async with flow.open(dsn) as app, app.worker(BYSTANDER), restarted_worker(dsn, tmp_path / "worker.log"):
        killer_id, *others_ids = await app.jobs.schedule_many([Kill(), *[Quick()] * BESIDE])
        killer = await ended(app, killer_id, within=60.0)
        others = [await ended(app, job_id, within=60.0) for job_id in others_ids]

    assert (killer.state, killer.reason, killer.crashes) == (JobState.DEAD, "worker_died", 5)
    assert [attempt["outcome"] for attempt in killer.past_attempts] == ["worker_died"] * 5
    assert len({attempt["worker"] for attempt in killer.past_attempts}) == 5
    assert {(other.state, other.attempt) for other in others} == {(JobState.SUCCEEDED, 1)}
    crashes = [other.crashes for other in others]
    assert max(crashes) == 2, "a suspect has to run alone"
    assert crashes.count(2) > BESIDE / 2, "hardly any were held together with it: the test shows nothing"
