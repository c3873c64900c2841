"""How each thing is measured: of one contestant on one stage, once."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from random import Random

from benchmarks.suite.stage import Stage, WorkerProcess

Figures = dict[str, float]
Measure = Callable[..., Awaitable[Figures]]
LIMIT_SECONDS = 20.0
"""A cell stops after so long, and counts what it did."""
BATCH = 1000
REST_SECONDS = 3.0
"""A worker that is ready still looks around and prepares statements; nothing tells when it has come to rest."""
TRAIL_SECONDS = 0.5
"""What the last job has sent to the server arrives within this, and is counted too."""
FIRST_SECONDS = 30.0
"""How long the first job may take to start."""


async def enqueue(stage: Stage, *, callers: int, seconds: float = 3.0) -> Figures:
    """Single calls, each durable when it returns."""
    made = await stage.produce("one", callers=callers, count=1_000_000, limit=seconds)
    return {"per_second": made["count"] / made["seconds"], **_milliseconds("call", made["took"])}


async def bulk(stage: Stage, *, count: int | None = None, batch: int = 10_000) -> Figures:
    """Many jobs, by the fastest documented way."""
    made = await stage.produce("many", count=count or stage.entry.bulk, batch=batch, limit=LIMIT_SECONDS)
    return {"per_second": made["count"] / made["seconds"], "jobs": made["count"]}


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
        **_memory(processes),
    }
    await stage.database.execute("SELECT pg_stat_force_next_flush()")
    dead = await stage.database.fetchval(
        "SELECT coalesce(sum(n_tup_upd + n_tup_del), 0)::float8 FROM pg_stat_user_tables"
    )
    return figures | {"dead_tuples_per_job": dead / max(1, done)}


async def sustained(stage: Stage, *, rate: int = 500, seconds: float = 60.0) -> Figures:
    """Single jobs at a steady rate, and a worker that runs them."""
    async with stage.workers(timed=True) as processes:
        made = await stage.produce("paced", count=int(rate * seconds), every=1 / rate, limit=seconds + 1, timed=True)
        await _until_started(processes, made["count"] + 1, seconds=LIMIT_SECONDS)
    lags = _lags(made["called"], processes)
    return {
        "per_second": len(lags) / made["seconds"],
        **_milliseconds("pickup", lags),
        "never_started": made["count"] - len(lags),
    }


async def pickup(stage: Stage, *, workers: int = 1, count: int = 300, every: float = 0.02) -> Figures:
    """Single jobs for idle workers: from the call that enqueues one to its start, and what the server did for it."""
    async with stage.workers(workers, timed=True) as processes:
        await asyncio.sleep(REST_SECONDS)
        await stage.produce("many", count=0, batch=1, limit=1)
        await stage.forget_statements()
        made = await stage.produce("paced", first=1, count=count, every=every, limit=60, timed=True)
        await _until_started(processes, made["count"] + 2, seconds=LIMIT_SECONDS)
        await asyncio.sleep(TRAIL_SECONDS)
        statements = await stage.count_statements()
    lags = _lags(made["called"], processes)
    return {
        "statements_per_job": statements / count,
        **_milliseconds("pickup", lags),
        **_milliseconds("call", made["took"]),
        "never_started": count - len(lags),
    }


async def lateness(stage: Stage, *, count: int = 200, spread: float = 10.0, workers: int = 1, loop: str = "uvloop",
                   parked: int = 0) -> Figures:  # fmt: skip
    """Delayed jobs: from the due time to the start; negative is too early. No *spread*: all at one instant."""
    rng = Random(1)
    after = sorted(3 + rng.uniform(0, spread) for _ in range(count)) if spread else [10.0] * count
    if parked:
        await stage.database.execute(PARK, parked)
        await stage.database.execute("VACUUM ANALYZE eventflow.job")
    async with stage.workers(workers, timed=True, loop=loop) as processes:
        made = await stage.produce("at", after=after)
        await _until_started(processes, count + 1, seconds=30 + max(after))
        shares = [process.started for process in processes]
    lags = _lags(made["due"], processes)
    return {
        **_milliseconds("late", lags),
        "earliest_ms": min(lags, default=0.0) * 1000,
        "latest_ms": max(lags, default=0.0) * 1000,
        "jobs": len(lags),
        "never_started": count - len(lags),
        "smallest_share": min(shares) / max(1, sum(shares)),
    }


async def idle(stage: Stage, *, workers: int = 1, seconds: float = 10.0) -> Figures:
    """Workers with nothing to do."""
    async with stage.workers(workers) as processes:
        await asyncio.sleep(REST_SECONDS)
        await stage.forget_statements()
        before = sum(process.cpu_seconds() for process in processes)
        await asyncio.sleep(seconds)
        statements = await stage.count_statements()
        cpu = sum(process.cpu_seconds() for process in processes) - before
    return {"statements_per_second": statements / seconds / workers, "cpu_percent": 100 * cpu / seconds / workers}


PARK = """
INSERT INTO eventflow.job (id, queue_id, due_at, ready_at, name, version, payload)
SELECT gen_random_uuid(), q.id, d.due, d.due, 'Tick', 1, '{"number":-2}'
FROM eventflow.queue AS q, (
    SELECT now() + interval '1 day' + n * interval '1 millisecond' AS due FROM generate_series(1, $1::bigint) AS n
) AS d
WHERE q.name = 'default'
"""

MEASURES: dict[str, Measure] = {
    "enqueue": enqueue,
    "bulk": bulk,
    "drain": drain,
    "sustained": sustained,
    "pickup": pickup,
    "lateness": lateness,
    "idle": idle,
}


async def _drained(stage: Stage, processes: Sequence[WorkerProcess], jobs: int) -> tuple[float, int]:
    """When the last had ended, and how many that is."""
    await _until_started(processes, 1, seconds=FIRST_SECONDS)
    until = time.monotonic() + LIMIT_SECONDS
    await _until_started(processes, jobs, seconds=LIMIT_SECONDS, every=0.005)
    if stage.entry.unfinished is None:
        return time.monotonic(), min(jobs, sum(process.started for process in processes))
    while (left := await stage.unfinished()) and time.monotonic() < until:
        await asyncio.sleep(0.005)
    return time.monotonic(), jobs - left


async def _until_started(processes: Sequence[WorkerProcess], jobs: int, *, seconds: float, every: float = 0.02) -> None:
    until = time.monotonic() + seconds
    while sum(process.started for process in processes) < jobs and time.monotonic() < until:
        await asyncio.sleep(every)


def _lags(since: Sequence[tuple[int, float]], processes: Sequence[WorkerProcess]) -> list[float]:
    started: dict[int, float] = {}
    for process in processes:
        for number, at in process.result.get("started", ()):
            started.setdefault(number, at)
    return [started[number] - at for number, at in since if number in started]


def _milliseconds(what: str, seconds: Sequence[float]) -> Figures:
    if not seconds:
        return {}
    ordered = sorted(seconds)
    return {
        f"{what}_p50_ms": statistics.median(ordered) * 1000,
        f"{what}_p95_ms": ordered[int(len(ordered) * 0.95)] * 1000,
        f"{what}_p99_ms": ordered[int(len(ordered) * 0.99)] * 1000,
    }


def _memory(processes: Sequence[WorkerProcess]) -> Figures:
    """Growth of a worker's memory over its jobs, by a straight line through its second half."""
    points: list[tuple[int, int]] = [
        tuple(point) for process in processes for point in process.result.get("memory", ())
    ]
    late = points[len(points) // 2 :]
    if len(processes) > 1 or len(late) < 2:
        return {}
    slope, _ = statistics.linear_regression([jobs for jobs, _ in late], [size for _, size in late])
    return {"memory_bytes_per_100k_jobs": slope * 100_000}
