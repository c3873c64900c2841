"""The way of a command, beside a script that does the same by hand."""

from benchmarks.suite.measures.figures import Figures
from benchmarks.suite.stage import Stage

PIPELINE = "benchmarks.command_pipeline:measure"


async def commands(stage: Stage, *, jobs: int = 1_000, rounds: int = 3, events: int = 1_000) -> Figures:
    """Commands that are scheduled, and events of one aggregate that are loaded; both per second, and by hand."""
    return await stage.call(PIPELINE, jobs=jobs, rounds=rounds, events=events)
