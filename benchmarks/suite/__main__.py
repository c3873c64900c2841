"""
Run the suite: ``make bench``, or ``python -m benchmarks.suite``; then make the report and the plots.

A cell that has been measured is not measured again: its result is a file. Remove the folder of results to begin anew.
"""

import argparse
import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.contestants.catalogue import CATALOGUE
from benchmarks.contestants.entry import ROOT, Entry
from benchmarks.suite.environments import Environments, MissingError
from benchmarks.suite.machine import busy_seconds, machine
from benchmarks.suite.measures import MEASURES, Figures
from benchmarks.suite.plan import REPEATS, SMOKE, TASKS, Cell, Task, cells
from benchmarks.suite.report import plot, write
from benchmarks.suite.results import Result, load, save
from benchmarks.suite.servers import Postgres, postgres, redis
from benchmarks.suite.stage import ContestantError, stage

CELL_SECONDS = 180.0
SAMPLE_SECONDS = 0.5
"""How long the load that others make is looked at, before each cell."""


class Run:
    """
    Measures cells and keeps what came of them.

    Args:
        results: The folder of results.
        environments: Those of the contestants.
        server: The Postgres.
        redis: The address of the Redis, or why there is none.
    """

    def __init__(self, results: Path, environments: Environments, server: Postgres, redis: str | MissingError) -> None:
        self._results = results
        self._environments = environments
        self._server = server
        self._redis = redis

    async def measure(self, cell: Cell) -> None:
        """Unless it has been."""
        path = self._results / "cells" / f"{cell.key}.json"
        if path.exists():
            return
        load = await _load()
        began = time.monotonic()
        result = Result(cell.task.name, cell.entry.name, cell.repeat, foreign_load=load)
        try:
            async with asyncio.timeout(CELL_SECONDS):
                result.figures = await self._figures(cell)
        except (MissingError, ContestantError) as exc:
            result.missing = str(exc)
        except TimeoutError:
            result.missing = f"took longer than {CELL_SECONDS:g} s"
        except Exception as exc:  # noqa: BLE001 - one cell that fails leaves the others
            result.missing = repr(exc)
        result.seconds = time.monotonic() - began
        save(path, result)
        print(f"{cell.key:45} {_shown(result)}", flush=True)

    async def _figures(self, cell: Cell) -> Figures:
        python = self._environments.python(cell.entry)
        address = dsn = await self._server.new_database()
        if cell.entry.server == "redis":
            if isinstance(self._redis, MissingError):
                raise self._redis
            address = self._redis
        try:
            async with stage(cell.entry, python, address, dsn) as placed:
                return await MEASURES[cell.task.measure](placed, **cell.task.options)
        finally:
            await self._server.drop_database()


async def run(chosen: Sequence[Cell], results: Path, environments: Environments) -> None:
    """Measure these cells."""
    save(results / "machine.json", machine())
    with ExitStack() as stack:
        server = stack.enter_context(postgres())
        try:
            address: str | MissingError = stack.enter_context(redis())
        except MissingError as exc:
            address = exc
        running = Run(results, environments, server, address)
        for cell in chosen:
            await running.measure(cell)


async def _load() -> float:
    """Of others: nothing of ours runs now."""
    before = busy_seconds()
    await asyncio.sleep(SAMPLE_SECONDS)
    return (busy_seconds() - before) / SAMPLE_SECONDS


def _shown(result: Result) -> str:
    if result.missing:
        return f"— {result.missing.strip().splitlines()[-1][:150]}"
    return "  ".join(f"{name} {value:,.2f}" for name, value in result.figures.items())


SMOKE_CONTESTANTS = ("eventflow", "raw 100")


def _only(tasks: Sequence[Task], entries: Sequence[Entry], words: str, most_repeats: int) -> Iterator[Cell]:
    """The cells of those that are named; of either kind all, if none is."""
    named = {word.strip() for word in words.split(",") if word.strip()}
    by_name = {entry.name.replace(" ", "-").replace(",", ""): entry for entry in entries}
    unknown = named - {task.name for task in tasks} - by_name.keys()
    if unknown:
        raise SystemExit(f"neither a task nor a contestant: {', '.join(sorted(unknown))}")
    wanted_tasks = [task for task in tasks if task.name in named] or tasks
    wanted = [entry for name, entry in by_name.items() if name in named] or entries
    return cells(wanted_tasks, wanted, most_repeats=most_repeats)


def report(results: Path, environments: Environments) -> None:
    """Make the report of what has been measured, and the plots if they can be drawn here."""
    write(results)
    print((results / "report.md").resolve())
    try:
        plot(results, environments)
    except MissingError as exc:
        print(f"no plots: {exc}")


def failed(results: Path) -> list[str]:
    """The cells of those who always take part that have no figures."""
    return [
        f"{result.task} of {result.contestant}: {_shown(result)}"
        for result in load(results)
        if result.contestant in SMOKE_CONTESTANTS and not result.figures
    ]


def main() -> None:
    """Choose, run, and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="tasks and contestants, comma separated: drain-1,raw-100")
    parser.add_argument("--smoke", action="store_true", help="a few seconds of everything, to see that it works")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="at most so many of each cell")
    parser.add_argument("--report", action="store_true", help="measure nothing, only make the report again")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--environments", type=Path, default=ROOT / ".bench")
    options = parser.parse_args()
    tasks = SMOKE if options.smoke else TASKS
    entries = [entry for entry in CATALOGUE if not options.smoke or entry.name in SMOKE_CONTESTANTS]
    chosen = list(_only(tasks, entries, options.only, options.repeats))
    environments = Environments(options.environments)
    if not options.report:
        asyncio.run(run(chosen, options.results, environments))
    report(options.results, environments)
    if options.smoke and (broken := failed(options.results)):
        raise SystemExit("\n".join(["failed:", *broken]))


if __name__ == "__main__":
    main()
