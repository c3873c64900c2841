"""What measures have in common: figures, and waiting for workers."""

import asyncio
import statistics
import time
from collections.abc import Sequence

from benchmarks.suite.stage import WorkerProcess

Figures = dict[str, float]
LIMIT_SECONDS = 20.0
"""A cell stops after so long, and counts what it did."""
FIRST_SECONDS = 30.0
"""How long the first job may take to start."""
LOOK_SECONDS = 0.005
"""Between two looks at a counter in memory, which tells nobody when it changes."""
REST_SECONDS = 3.0
"""A worker that is ready still looks around and prepares statements; nothing tells when it has come to rest."""


async def until_started(processes: Sequence[WorkerProcess], jobs: int, *, seconds: float, every: float = 0.02) -> None:
    """Wait until they have started so many jobs, or so many seconds."""
    until = time.monotonic() + seconds
    while sum(process.started for process in processes) < jobs and time.monotonic() < until:
        await asyncio.sleep(every)


def lags_of(since: Sequence[tuple[int, float]], processes: Sequence[WorkerProcess]) -> list[float]:
    """Seconds from an instant of each job, given as (number, instant), to its start; the never started are left out."""
    started: dict[int, float] = {}
    for process in processes:
        for number, at in process.result.get("started", ()):
            started.setdefault(number, at)
    return [started[number] - at for number, at in since if number in started]


def milliseconds(what: str, seconds: Sequence[float]) -> Figures:
    """Percentiles."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    return {
        f"{what}_p50_ms": statistics.median(ordered) * 1000,
        f"{what}_p95_ms": ordered[int(len(ordered) * 0.95)] * 1000,
        f"{what}_p99_ms": ordered[int(len(ordered) * 0.99)] * 1000,
    }
