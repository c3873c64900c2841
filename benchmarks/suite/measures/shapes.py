"""Jobs that take their time: many short sleeps at once, and long ones beside short ones."""

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.contestants.lasting import LONG, LONG_SECONDS
from benchmarks.suite.measures.draining import drain
from benchmarks.suite.measures.figures import Figures, lags_of, milliseconds, until_started
from benchmarks.suite.stage import Stage, WorkerProcess

NAPS, DURATIONS, PLAIN = (f"benchmarks.contestants.lasting:{name}" for name in ("Naps", "Durations", "plain_naps"))
SETTLE_SECONDS = 5.0


async def naps(stage: Stage, *, count: int = 100_000) -> Figures:
    """Jobs that sleep for 10 ms, 1,000 at once in one process; no-op jobs; the same sleeps by bare tasks."""
    without = await drain(stage, workers=1, count=count)
    stage.entry = replace(stage.entry, way=NAPS)
    sleeping = await drain(stage, workers=1, count=count)
    plain = await stage.call(PLAIN, count=count)
    return {
        "per_second": sleeping["per_second"],
        "jobs": sleeping["jobs"],
        "no_op_per_second": without["per_second"],
        **plain,
    }


async def durations(stage: Stage, *, workers: int, long: int, rate: int = 100, seconds: float = 15.0) -> Figures:
    """
    A steady flow of jobs of 1 ms to 1 s, alone and then while *long* jobs of 30 s are running.

    Each is timed from the call that enqueues it to its start. The long ones arrive at one instant, just before.
    """
    assert seconds < LONG_SECONDS - SETTLE_SECONDS, "the long ones have to last"
    stage.entry = replace(stage.entry, way=DURATIONS)
    async with stage.workers(workers, timed=True) as processes:
        called = await _flow(stage, processes, rate, seconds)
    alone = lags_of(called, processes)
    async with stage.workers(workers, timed=True) as processes:
        await stage.produce("many", first=LONG, count=long, batch=long, limit=SETTLE_SECONDS)
        await until_started(processes, long + 1, seconds=SETTLE_SECONDS)
        called = await _flow(stage, processes, rate, seconds)
    beside = lags_of(called, processes)
    return {
        **milliseconds("alone", alone),
        **milliseconds("beside_long", beside),
        "beside_long_latest_ms": max(beside, default=0.0) * 1000,
        "started": len(beside),
        "never_started": len(called) - len(beside),
    }


async def _flow(
    stage: Stage, processes: Sequence[WorkerProcess], rate: int, seconds: float
) -> Sequence[tuple[int, float]]:
    """The numbers and instants of its calls; all have started, or it takes too long."""
    before = sum(process.started for process in processes)
    made = await stage.produce("paced", count=int(rate * seconds), every=1 / rate, limit=seconds + 1, timed=True)
    await until_started(processes, before + made["count"] + 1, seconds=SETTLE_SECONDS)
    called: Sequence[tuple[int, float]] = made["called"]
    return called
