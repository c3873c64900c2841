"""What a reader costs that keeps its snapshot while jobs pass: nothing that is deleted meanwhile can be cleaned up."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import nullcontext

from benchmarks.suite.measures.figures import (
    FIRST_SECONDS,
    LIMIT_SECONDS,
    LOOK_SECONDS,
    REST_SECONDS,
    Figures,
    lags_of,
    milliseconds,
    until_started,
)
from benchmarks.suite.stage import Stage, WorkerProcess

BATCH = 10_000
SHARE = 0.1
"""Of the jobs: the first and the last of them are looked at."""
IDLE = "benchmarks.contestants.ours:Elsewhere"
"""Workers of a queue that has no jobs; notifications wake them all the same."""


async def held_snapshot(stage: Stage, *, count: int, idle: int = 0, way: str | None = None, pickups: int = 100,
                        rest: float = REST_SECONDS, held: bool = True, seconds: float = 60.0) -> Figures:  # fmt: skip
    """
    No-op jobs that one worker drains while a reader holds its snapshot; rates by starts.

    Single jobs are timed before there is any other, and again when all have passed, on the worker that has done it. If
    they have not in time, there is a backlog and the figures of the second are missing.

    Args:
        count: Jobs that pass.
        idle: Workers besides.
        way: How the contestant works, other than in other measures.
        pickups: Jobs that are timed.
        rest: Seconds that workers have before that.
        held: False: nobody holds a snapshot, to see what else changes while so many jobs pass.
        seconds: How long the jobs may take to get there, and how long to pass: then those count that have.
    """
    async with stage.workers(idle, way=IDLE):
        async with stage.workers(way=way, timed=True) as fresh:
            called = await _single_jobs(stage, fresh, 0, pickups, rest)
        before = lags_of(called, fresh)
        made = await stage.produce("many", count=count, batch=BATCH, limit=seconds)
        jobs = made["count"] + 1  # the producer's first
        await stage.database.execute("VACUUM ANALYZE")
        await stage.database.execute("CHECKPOINT")
        async with stage.database.transaction(isolation="repeatable_read", readonly=True) if held else nullcontext():
            await stage.database.fetchval("SELECT count(*) FROM pg_class")  # the snapshot is taken by the first query
            async with stage.workers(way=way, begin=False, timed_from=count) as crew:
                passed = await _passed(crew[0], jobs, seconds)
                all_passed = passed[-1][1] >= jobs
                called = await _single_jobs(stage, crew, count, pickups if all_passed else 0, rest)
    fresh_rate, end_rate = _rates(passed)
    return {
        "fresh_per_second": fresh_rate,
        "end_per_second": end_rate,
        "ratio": end_rate / fresh_rate,
        "jobs": passed[-1][1],
        **milliseconds("fresh_pickup", before),
        **milliseconds("end_pickup", lags_of(called, crew)),
    }


async def _single_jobs(
    stage: Stage, processes: Sequence[WorkerProcess], first: int, count: int, rest: float
) -> Sequence[tuple[int, float]]:
    """One job each 20 ms, for a worker at rest; their numbers and the instants of their calls."""
    await asyncio.sleep(rest)
    before = sum(process.started for process in processes)
    made = await stage.produce("paced", first=first, count=count, every=0.02, limit=60, timed=True)
    await until_started(processes, before + made["count"] + 1, seconds=LIMIT_SECONDS)
    called: Sequence[tuple[int, float]] = made["called"]
    return called


async def _passed(worker: WorkerProcess, jobs: int, seconds: float) -> list[tuple[float, int]]:
    """Let it begin; instants, and how many jobs had started by then."""
    worker.begin()
    await until_started([worker], 1, seconds=FIRST_SECONDS, every=LOOK_SECONDS)
    until = time.monotonic() + seconds
    passed = [(time.monotonic(), worker.started)]
    while passed[-1][1] < jobs and passed[-1][0] < until:
        await asyncio.sleep(LOOK_SECONDS)
        passed.append((time.monotonic(), worker.started))
    return passed


def _rates(passed: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Of the first tenth of the jobs that have passed, and of the last."""
    total = passed[-1][1]
    first = next(look for look in passed if look[1] >= SHARE * total)
    last = next(look for look in passed if look[1] >= (1 - SHARE) * total)
    return _rate(passed[0], first), _rate(last, passed[-1])


def _rate(one: tuple[float, int], other: tuple[float, int]) -> float:
    return (other[1] - one[1]) / max(LOOK_SECONDS, other[0] - one[0])
