"""What the wake-up of workers costs the producers."""

import asyncio
import time
from collections.abc import Iterable, Sequence

from benchmarks.contestants import committing as program
from benchmarks.contestants.committing import SLICE_SECONDS, WOKEN_SLICES, is_woken, slice_at
from benchmarks.suite.measures.figures import Figures
from benchmarks.suite.stage import ContestantError, Stage, WorkerProcess

WAYS = {1: "Client", 16: "Clients16", 64: "Clients64"}
ROUND_SECONDS = SLICE_SECONDS * len(WOKEN_SLICES)
SETTLE_SECONDS = 0.1
"""After a change of sides: transactions of the side before end, and its last notifications arrive."""


async def committing(
    stage: Stage, *, clients: int = 1, processes: int = 1, listeners: int = 1, rounds: int = 4
) -> Figures:
    """
    Commits per second, with and without the wake-up; both sides take turns of half a second.

    Args:
        clients: At once, in each process.
        processes: That commit.
        listeners: Processes that hear of it.
        rounds: Of two turns of each side.
    """
    await stage.database.execute(program.TABLE)
    way = f"{program.__name__}:{WAYS[clients]}"
    async with (
        stage.workers(listeners, way=f"{program.__name__}:Listener") as listening,
        stage.workers(processes, way=way, timed=True) as producing,
    ):
        await asyncio.sleep(ROUND_SECONDS / 2 + -time.time() % ROUND_SECONDS)
        first = slice_at(time.time())
        heard = sum(process.started for process in listening)
        await asyncio.sleep(rounds * ROUND_SECONDS)
        heard = sum(process.started for process in listening) - heard
    slices = range(first, first + rounds * len(WOKEN_SLICES))
    woken, quiet = _rates(_commits(producing), slices)
    return {
        "with_per_second": woken,
        "without_per_second": quiet,
        "ratio": woken / quiet,
        "heard_per_second": heard / listeners / (rounds * ROUND_SECONDS / 2),
    }


def _commits(processes: Sequence[WorkerProcess]) -> Iterable[tuple[int, float]]:
    for process in processes:
        if not process.result:
            raise ContestantError("a producer failed")
        yield from process.result["started"]


def _rates(commits: Iterable[tuple[int, float]], slices: range) -> tuple[float, float]:
    """With and without; counted are those commits in these slices that come after the change of sides has settled."""
    counts = [0, 0]
    for woken, at in commits:
        number = slice_at(at)
        if number in slices and at - number * SLICE_SECONDS >= SETTLE_SECONDS and woken == is_woken(number):
            counts[woken] += 1
    seconds = len(slices) / 2 * (SLICE_SECONDS - SETTLE_SECONDS)
    return counts[1] / seconds, counts[0] / seconds
