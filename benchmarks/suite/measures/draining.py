"""How fast workers get through what waits."""

import asyncio
import time
from collections.abc import Sequence

from benchmarks.suite.measures.figures import FIRST_SECONDS, LIMIT_SECONDS, LOOK_SECONDS, Figures, until_started
from benchmarks.suite.stage import Stage, WorkerProcess

BATCH = 1000


async def drain(stage: Stage, *, workers: int, count: int | None = None, loop: str = "uvloop") -> Figures:
    """No-op jobs, from the first start to the last durable end; starting the processes is left out."""
    wanted = count or stage.entry.backlog * (2 if workers > 1 else 1)
    made = await stage.produce("many", count=wanted, batch=BATCH, limit=LIMIT_SECONDS)
    jobs = made["count"] + 1  # the producer's first
    await stage.database.execute("VACUUM ANALYZE")
    written = await stage.written_bytes()
    async with stage.workers(workers, begin=False, loop=loop) as processes:
        for process in processes:
            process.begin()
        ended, done = await _drained(stage, processes, jobs)
        shares = [process.started for process in processes]
    seconds = ended - min(process.result["first"] for process in processes if process.result.get("first"))
    figures = {
        "per_second": done / seconds,
        "jobs": done,
        "seconds": seconds,
        "smallest_share": min(shares) / max(1, sum(shares)),
        "started_more_than_once": max(0, sum(shares) - jobs),
        "wal_bytes_per_job": (await stage.written_bytes() - written) / max(1, done),
    }
    await stage.database.execute("SELECT pg_stat_force_next_flush()")
    dead = await stage.database.fetchval(
        "SELECT coalesce(sum(n_tup_upd + n_tup_del), 0)::float8 FROM pg_stat_user_tables"
    )
    return figures | {"dead_tuples_per_job": dead / max(1, done)}


async def _drained(stage: Stage, processes: Sequence[WorkerProcess], jobs: int) -> tuple[float, int]:
    """When the last had ended, and how many that is."""
    await until_started(processes, 1, seconds=FIRST_SECONDS)
    until = time.monotonic() + LIMIT_SECONDS
    await until_started(processes, jobs, seconds=LIMIT_SECONDS, every=LOOK_SECONDS)
    if stage.entry.unfinished is None:
        return time.monotonic(), min(jobs, sum(process.started for process in processes))
    while (left := await stage.unfinished()) and time.monotonic() < until:
        await asyncio.sleep(LOOK_SECONDS)
    return time.monotonic(), jobs - left
