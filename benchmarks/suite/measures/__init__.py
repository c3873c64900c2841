"""How each thing is measured: of one contestant on one stage, once."""

from collections.abc import Awaitable, Callable

from benchmarks.suite.measures.codec import codec
from benchmarks.suite.measures.commands import commands
from benchmarks.suite.measures.committing import committing
from benchmarks.suite.measures.deep_backlog import deep_backlog
from benchmarks.suite.measures.draining import drain
from benchmarks.suite.measures.figures import Figures
from benchmarks.suite.measures.held_snapshot import held_snapshot
from benchmarks.suite.measures.latency import idle, lateness, pickup, sustained
from benchmarks.suite.measures.memory import memory
from benchmarks.suite.measures.processes import crash, supervised
from benchmarks.suite.measures.producing import bulk, enqueue
from benchmarks.suite.measures.shapes import durations, naps

__all__ = ["MEASURES", "Figures", "Measure"]

Measure = Callable[..., Awaitable[Figures]]

MEASURES: dict[str, Measure] = {
    measure.__name__: measure
    for measure in (
        *(enqueue, bulk, drain, sustained, pickup, lateness, idle),
        *(codec, commands, memory, naps, durations, supervised, crash),
        *(committing, held_snapshot, deep_backlog),
    )
}
