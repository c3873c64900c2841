"""How each thing is measured: of one contestant on one stage, once."""

from collections.abc import Awaitable, Callable

from benchmarks.suite.measures.draining import drain
from benchmarks.suite.measures.figures import Figures
from benchmarks.suite.measures.latency import idle, lateness, pickup, sustained
from benchmarks.suite.measures.producing import bulk, enqueue

__all__ = ["MEASURES", "Figures", "Measure"]

Measure = Callable[..., Awaitable[Figures]]

MEASURES: dict[str, Measure] = {
    measure.__name__: measure for measure in (enqueue, bulk, drain, sustained, pickup, lateness, idle)
}
