"""Enqueuing."""

from benchmarks.suite.measures.figures import LIMIT_SECONDS, Figures, milliseconds
from benchmarks.suite.stage import Stage


async def enqueue(stage: Stage, *, callers: int, seconds: float = 3.0) -> Figures:
    """Single calls, each durable when it returns."""
    made = await stage.produce("one", callers=callers, count=1_000_000, limit=seconds)
    return {"per_second": made["count"] / made["seconds"], **milliseconds("call", made["took"])}


async def bulk(stage: Stage, *, count: int | None = None, batch: int = 10_000) -> Figures:
    """Many jobs, by the fastest documented way."""
    made = await stage.produce("many", count=count or stage.entry.bulk, batch=batch, limit=LIMIT_SECONDS)
    return {"per_second": made["count"] / made["seconds"], "jobs": made["count"]}
