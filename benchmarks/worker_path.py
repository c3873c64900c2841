"""
The path of a job, measured on the embedded Postgres with durable settings: ``python -m benchmarks.worker_path``.

Worker and producer are separate processes, as in production. Latencies are the database's own clock at the start of the
handler against the due time, so they include the round trip that reads that clock.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from random import Random

import asyncpg

from eventflow import EventFlow, Job, JobContext, Services, SystemClock, WorkerSettings
from eventflow.devdb import EmbeddedPostgres
from eventflow.postgres import Connection, migrate

clock = SystemClock()


class Starts:
    """Writes down when jobs started, by the database's clock."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    async def note(self, context: JobContext) -> None:
        await self._pool.execute(
            "INSERT INTO start SELECT $1, clock_timestamp() - $2::timestamptz", context.job_id, context.due_at
        )


@asynccontextmanager
async def lifespan(services: Services) -> AsyncGenerator[None]:
    async with asyncpg.create_pool(os.environ["EVENTFLOW_DSN"], min_size=4, max_size=4, reset=_keep) as pool:
        services.register_value(Starts, Starts(pool))
        yield


async def _keep(_: object) -> None:
    """In place of the pool's reset statements."""


flow = EventFlow("worker_path", lifespan=lifespan)


@flow.job
class Nothing(Job):
    """Does nothing, for throughput."""

    async def execute(self, context: JobContext) -> None:
        pass


@flow.job
class Note(Job):
    """Writes down how long after its due time it started."""

    async def execute(self, context: JobContext) -> None:
        starts = await context.services.aget(Starts)
        await starts.note(context)


async def run_worker() -> None:
    """The worker process: runs until its standard input closes."""
    async with flow.open() as app, app.worker(WorkerSettings()):
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


@asynccontextmanager
async def worker_process(dsn: str) -> AsyncGenerator[None]:
    """A worker in a process of its own."""
    process = subprocess.Popen(  # noqa: ASYNC220 - nothing else is under way
        [sys.executable, "-m", "benchmarks.worker_path", "--worker"],
        env={**os.environ, "EVENTFLOW_DSN": dsn},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    await asyncio.to_thread(process.stdout.readline)
    try:
        yield
    finally:
        process.stdin.close()
        process.wait()


async def measure(dsn: str, *, jobs: int, sparse: int) -> None:
    """Run every part and print its line."""
    admin: Connection = await asyncpg.connect(dsn)
    await migrate(admin)
    await admin.execute("CREATE EXTENSION pg_stat_statements; CREATE TABLE start (id text, late interval)")
    os.environ["EVENTFLOW_DSN"] = dsn
    async with flow.open() as app:
        await app.jobs.schedule_many([Nothing()] * jobs)
        started = clock.monotonic()
        async with worker_process(dsn):
            await _until_empty(admin)
            print(f"drain           {jobs / (clock.monotonic() - started):,.0f} jobs/s, start of the worker included")
            await clock.sleep(2)
            await admin.execute("SELECT pg_stat_statements_reset()")
            await clock.sleep(10)
            calls = await _calls(admin)
            print(f"idle            {calls / 10:.1f} statements/s")

            await admin.execute("SELECT pg_stat_statements_reset()")
            for _ in range(sparse):
                await app.jobs.schedule(Note())
                await clock.sleep(0.02)
            await _until_empty(admin)
            await _report(admin, "pickup")

            rng = Random(1)
            for _ in range(sparse):
                await app.jobs.schedule(Note(), delay=timedelta(seconds=rng.uniform(1, 6)))
            await _until_empty(admin)
            await _report(admin, "lateness")

            await app.jobs.schedule_many([Note()] * 1000, delay=timedelta(seconds=2))
            await _until_empty(admin)
            await _report(admin, "same instant")
    await admin.close()


async def _until_empty(admin: Connection) -> None:
    query = "SELECT (SELECT count(*) FROM eventflow.job) + (SELECT count(*) FROM eventflow.running)"
    while await admin.fetchval(query):
        await clock.sleep(0.05)


async def _calls(admin: Connection) -> float:
    own = "query NOT LIKE '%pg_stat_statements%'"
    return float(await admin.fetchval(f"SELECT coalesce(sum(calls), 0) FROM pg_stat_statements WHERE {own}"))


async def _report(admin: Connection, name: str) -> None:
    rows = await admin.fetch("DELETE FROM start RETURNING extract(epoch FROM late)::float8 * 1000 AS late")
    late = sorted(row["late"] for row in rows)
    print(
        f"{name:15} p50 {statistics.median(late):.2f} ms, p99 {_percentile(late, 0.99):.2f} ms, "
        f"earliest {late[0]:.2f} ms, latest {late[-1]:.2f} ms, {len(late)} jobs"
    )


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def main() -> None:
    """Start the server and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--jobs", type=int, default=20_000, help="jobs to drain")
    parser.add_argument("--sparse", type=int, default=300, help="single jobs for each latency")
    options = parser.parse_args()
    if options.worker:
        asyncio.run(run_worker())
        return
    with tempfile.TemporaryDirectory(prefix="eventflow-bench-") as directory:
        settings = {"shared_preload_libraries": "pg_stat_statements"}
        with EmbeddedPostgres(Path(directory) / "postgres", settings=settings) as server:
            asyncio.run(measure(server.dsn(), jobs=options.jobs, sparse=options.sparse))


if __name__ == "__main__":
    main()
