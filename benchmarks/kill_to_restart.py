"""
From kill to restart, measured on the embedded Postgres with durable settings: ``python -m benchmarks.kill_to_restart``.

Workers are processes of their own, each with jobs running all the while. One after the other is killed by SIGKILL, at a
random moment, and another takes its place. By the database's clock: from immediately before the kill until the
handler of each job that the dead worker held begins in another process. The others have slots free for that: what
is rescued goes to the end of the line, and waiting there is not what is measured.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import asyncpg

from eventflow import App, EventFlow, Job, JobContext, Services, SystemClock, WorkerSettings
from eventflow.devdb import EmbeddedPostgres
from eventflow.postgres import Connection, migrate
from reliability.reports import keep, summary

CONCURRENCY = 10
JOB_SECONDS = 0.25
LOAD = 0.6
"""Share of all slots that is kept busy."""
HELD = "SELECT running.id FROM eventflow.running JOIN eventflow.worker ON worker.id = worker_id WHERE pid = $1"
FIRST_STARTS = """
SELECT extract(epoch FROM min(start.at) - $2)::float8 AS seconds FROM start
WHERE job_id = ANY ($1) AND at > $2 GROUP BY job_id
"""
ALL_UNENDED = "SELECT (SELECT count(*) FROM eventflow.job) + (SELECT count(*) FROM eventflow.running)"
UNENDED = "SELECT count(*) FROM eventflow.any_job WHERE state IN ('waiting', 'running') AND id = ANY ($1)"
RESCUED = "SELECT id FROM eventflow.any_job WHERE id = ANY ($1) AND crashes > 0"
LISTENING = "SELECT count(*) FROM eventflow.worker WHERE pid = ANY ($1) AND session_key IS NOT NULL"
OUTCOMES = "SELECT state, attempt, count(*) AS jobs FROM eventflow.any_job GROUP BY 1, 2 ORDER BY 3 DESC"

clock = SystemClock()


class Starts:
    """Writes down when handlers began, by the database's clock."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    async def note(self, context: JobContext) -> None:
        await self._pool.execute("INSERT INTO start SELECT $1, clock_timestamp()", context.job_id.uuid)


@asynccontextmanager
async def lifespan(services: Services) -> AsyncGenerator[None]:
    async with asyncpg.create_pool(os.environ["EVENTFLOW_DSN"], min_size=0, max_size=4) as pool:
        services.register_value(Starts, Starts(pool))
        yield


flow = EventFlow("kill_to_restart", lifespan=lifespan)


@flow.job
class Work(Job):
    """Writes down that it began, and takes a while."""

    async def execute(self, context: JobContext) -> None:
        starts = await context.services.aget(Starts)
        await starts.note(context)
        await clock.sleep(JOB_SECONDS)


async def run_worker() -> None:
    """The worker process: runs until it is killed."""
    async with flow.open() as app, app.worker(WorkerSettings(concurrency=CONCURRENCY)):
        await asyncio.Event().wait()


class Killing:
    """
    Kills workers and watches what becomes of their jobs.

    Attributes:
        restarts: Seconds, of every job of every kill.
        scheduled: How many jobs there ever were.
    """

    def __init__(self, app: App, admin: Connection, *, workers: int, rng: Random) -> None:
        self._app = app
        self._admin = admin
        self._rng = rng
        self.workers = [start_worker() for _ in range(workers)]
        self.restarts: list[list[float]] = []
        self.scheduled = 0

    async def run(self, kills: int) -> None:
        """Kill so many workers that hold jobs."""
        while len(self.restarts) < kills:
            pids = [worker.pid for worker in self.workers]
            await self._until(LISTENING, pids, len(pids))
            await self._pause(self._rng.uniform(0.0, 1.0))
            await self._kill(self._rng.randrange(len(self.workers)))

    async def finish(self) -> None:
        """Wait until all jobs have ended."""
        while await self._admin.fetchval(
            "SELECT count(*) FROM eventflow.any_job WHERE state IN ('waiting', 'running')"
        ):
            await clock.sleep(0.1)

    async def _kill(self, index: int) -> None:
        worker = self.workers[index]
        killed_at = await self._admin.fetchval("SELECT clock_timestamp()")
        worker.kill()
        worker.wait()
        held = [row["id"] for row in await self._admin.fetch(HELD, worker.pid)]
        self.workers[index] = start_worker()
        if not held:
            return
        # All have ended before the next kill: one held by two dead workers would run alone, and wait for that.
        await self._until(UNENDED, held, 0)
        rescued = [row["id"] for row in await self._admin.fetch(RESCUED, held)]  # the others' ends were under way
        rows = await self._admin.fetch(FIRST_STARTS, rescued, killed_at)
        assert len(rows) == len(rescued), "a job has ended without a start after the kill"
        if rows:
            self.restarts.append([row["seconds"] for row in rows])

    async def _until(self, query: str, argument: Sequence[object], expected: int) -> None:
        while await self._admin.fetchval(query, argument) != expected:
            await self._pause(0.02)

    async def _pause(self, seconds: float) -> None:
        """Wait, and keep all workers busy meanwhile."""
        wanted = int(LOAD * CONCURRENCY * len(self.workers))
        until = clock.monotonic() + seconds
        while True:
            missing = wanted - await self._admin.fetchval(ALL_UNENDED)
            if missing > 0:
                await self._app.jobs.schedule_many([Work()] * missing)
                self.scheduled += missing
            left = until - clock.monotonic()
            if left <= 0:
                return
            await clock.sleep(min(left, 0.05))


def start_worker() -> "subprocess.Popen[bytes]":
    """A worker in a process of its own."""
    return subprocess.Popen([sys.executable, "-m", "benchmarks.kill_to_restart", "--worker"])


async def measure(dsn: str, *, kills: int, workers: int) -> list[dict[str, Any]]:  # Any: numbers, and what they say
    """Kill, and print what was seen."""
    admin: Connection = await asyncpg.connect(dsn)
    await migrate(admin)
    await admin.execute(
        "CREATE TABLE start (job_id uuid NOT NULL, at timestamptz NOT NULL); CREATE INDEX ON start (job_id)"
    )
    os.environ["EVENTFLOW_DSN"] = dsn
    async with flow.open() as app:
        killing = Killing(app, admin, workers=workers, rng=Random())
        try:
            await killing.run(kills)
            await killing.finish()
        finally:
            for worker in killing.workers:
                worker.kill()
                worker.wait()
    every = [seconds for kill in killing.restarts for seconds in kill]
    results = [
        summary("SIGKILL of a worker until each of its jobs runs again", every),
        summary("SIGKILL of a worker until the last of its jobs runs again", [max(kill) for kill in killing.restarts]),
    ]
    for result in results:
        print(result)
    print(f"{kills} kills, {killing.scheduled} jobs")
    for row in await admin.fetch(OUTCOMES):
        print(f"  {row['state']} with attempt {row['attempt']}: {row['jobs']}")
    await admin.close()
    return results


def main() -> None:
    """Start the server and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--kills", type=int, default=100, help="kills of a worker that holds jobs")
    parser.add_argument("--workers", type=int, default=4, help="workers at any time")
    parser.add_argument("--report", action="store_true", help="keep the results for docs/reliability.md")
    options = parser.parse_args()
    if options.worker:
        asyncio.run(run_worker())
        return
    with (
        tempfile.TemporaryDirectory(prefix="eventflow-bench-") as directory,
        EmbeddedPostgres(Path(directory) / "postgres") as server,
    ):
        results = asyncio.run(measure(server.dsn(), kills=options.kills, workers=options.workers))
    if options.report:
        keep("recovery", results)


if __name__ == "__main__":
    main()
