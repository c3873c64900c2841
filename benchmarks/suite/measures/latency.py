"""How soon jobs start, and what workers cost that wait for them."""

import asyncio
from random import Random

from benchmarks.suite.measures.figures import LIMIT_SECONDS, REST_SECONDS, Figures, lags_of, milliseconds, until_started
from benchmarks.suite.stage import Stage

TRAIL_SECONDS = 0.5
"""What the last job has sent to the server arrives within this, and is counted too."""
PARK = """
INSERT INTO eventflow.job (id, queue_id, due_at, ready_at, name, version, payload)
SELECT gen_random_uuid(), q.id, d.due, d.due, 'Tick', 1, '{"number":-2}'
FROM eventflow.queue AS q, (
    SELECT now() + interval '1 day' + n * interval '1 millisecond' AS due FROM generate_series(1, $1::bigint) AS n
) AS d
WHERE q.name = 'default'
"""


async def sustained(stage: Stage, *, rate: int = 500, seconds: float = 60.0) -> Figures:
    """Single jobs at a steady rate, and a worker that runs them."""
    async with stage.workers(timed=True) as processes:
        made = await stage.produce("paced", count=int(rate * seconds), every=1 / rate, limit=seconds + 1, timed=True)
        await until_started(processes, made["count"] + 1, seconds=LIMIT_SECONDS)
    lags = lags_of(made["called"], processes)
    return {
        "per_second": len(lags) / made["seconds"],
        **milliseconds("pickup", lags),
        "never_started": made["count"] - len(lags),
    }


async def pickup(stage: Stage, *, workers: int = 1, count: int = 300, every: float = 0.02) -> Figures:
    """Single jobs for idle workers: from the call that enqueues one to its start, and what the server did for it."""
    async with stage.workers(workers, timed=True) as processes:
        await asyncio.sleep(REST_SECONDS)
        await stage.produce("many", count=0, batch=1, limit=1)
        await stage.forget_statements()
        made = await stage.produce("paced", first=1, count=count, every=every, limit=60, timed=True)
        await until_started(processes, made["count"] + 2, seconds=LIMIT_SECONDS)
        await asyncio.sleep(TRAIL_SECONDS)
        statements = await stage.count_statements()
    lags = lags_of(made["called"], processes)
    return {
        "statements_per_job": statements / count,
        **milliseconds("pickup", lags),
        **milliseconds("call", made["took"]),
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
        await until_started(processes, count + 1, seconds=30 + max(after))
        shares = [process.started for process in processes]
    lags = lags_of(made["due"], processes)
    return {
        **milliseconds("late", lags),
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
