"""What a worker's process takes while it works on and on."""

import statistics
from collections.abc import Sequence
from itertools import combinations

from benchmarks.suite.measures.figures import Figures, until_started
from benchmarks.suite.stage import Stage

BATCH = 1000
FILL_SECONDS = 60.0
DRAIN_SECONDS = 90.0
WARM = 0.2
"""Share of the jobs after which caches, pools and the interpreter's arenas have their size."""


async def memory(stage: Stage, *, count: int = 1_000_000) -> Figures:
    """No-op jobs, all there when one worker begins; what it takes is looked at each 20,000 jobs."""
    made = await stage.produce("many", count=count, batch=BATCH, limit=FILL_SECONDS)
    await stage.database.execute("VACUUM ANALYZE")
    async with stage.workers() as processes:
        await until_started(processes, made["count"] + 1, seconds=DRAIN_SECONDS)
        started = processes[0].started
    points: list[tuple[int, int]] = processes[0].result["memory"]
    late = [point for point in points if point[0] >= WARM * started]
    return {
        "jobs": started,
        "memory_bytes_per_100k_jobs": slope(late) * 100_000,
        "first_mb": late[0][1] / 1e6,
        "last_mb": late[-1][1] / 1e6,
    }


def slope(points: Sequence[tuple[float, float]]) -> float:
    """
    Of a line through points: the median slope of all pairs, which single outliers do not move.

    Source: P. K. Sen, "Estimates of the Regression Coefficient Based on Kendall's Tau", JASA 63, 1968.

    >>> slope([(0, 5), (1, 6), (2, 700), (3, 8)])
    1.0
    """
    return statistics.median((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2))
