"""The cells of a run, summed up: medians over the repeats, what limits them, and why there are none."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from benchmarks.contestants.entry import Entry
from benchmarks.suite.plan import OURS, RAW, Task
from benchmarks.suite.results import Result

LOUD = 0.25
"""Cores that others may use while a cell is measured."""
IN_TIME = ("lateness", "memory", "held_snapshot")
"""Measures that count jobs which started in time; so many were wanted."""

Role = Literal["ours", "raw", "peer", "orientation"]


class Figure(msgspec.Struct, frozen=True):
    """
    One figure over the repeats.

    Attributes:
        loud: Others used the machine in every repeat.
    """

    median: float
    low: float
    high: float
    repeats: int
    loud: bool


class Standing(msgspec.Struct):
    """
    All that is known of a contestant.

    Attributes:
        role: Peers stand on Postgres; what stands elsewhere is there for orientation.
        requirements: What was asked for in its environment, besides this project itself.
        configuration: As in the catalogue; so is the caveat.
        figures: By task, then by name.
        absent: Why it has no figures, by task.
        notes: What limits its figures, by task.
    """

    name: str
    role: Role
    requirements: tuple[str, ...] = ()
    configuration: str = ""
    caveat: str = ""
    figures: dict[str, dict[str, Figure]] = {}
    absent: dict[str, str] = {}
    notes: dict[str, list[str]] = {}


Standings = Mapping[str, Standing]


def sum_up(results: Sequence[Result], entries: Sequence[Entry], tasks: Sequence[Task]) -> dict[str, Standing]:
    """Everybody who has had a turn, in the order of the catalogue; tasks that nobody has had are left out."""
    played = {result.contestant for result in results}
    standings = {entry.name: _standing(entry) for entry in entries if entry.name in played}
    had = {result.task for result in results}
    for task in (task for task in tasks if task.name in had):
        for entry in (entry for entry in entries if entry.name in played and entry.name in (task.only or played)):
            turns = [result for result in results if (result.task, result.contestant) == (task.name, entry.name)]
            _add(standings[entry.name], entry, task, turns)
    return standings


def _standing(entry: Entry) -> Standing:
    role: Role = "peer" if entry.server == "postgres" else "orientation"
    if entry.name in OURS:
        role = "ours"
    elif entry.name in RAW:
        role = "raw"
    requirements = tuple(each for each in entry.requirements if not each.startswith("-"))
    return Standing(entry.name, role, requirements, entry.configuration, entry.caveat)


def _add(standing: Standing, entry: Entry, task: Task, turns: Sequence[Result]) -> None:
    if good := [turn for turn in turns if turn.figures and not turn.missing]:
        figures = standing.figures[task.name] = _figures(good)
        notes = [*_failed(turns), *_limits(entry, task, figures)]
        if notes:
            standing.notes[task.name] = notes
    elif task.measure in entry.lacks:
        standing.absent[task.name] = "it does not do this, or just as the row above"
    else:
        reasons = [_last_line(turn.missing) for turn in turns]
        standing.absent[task.name] = reasons[-1] if reasons else "not part of this run"


def _figures(turns: Sequence[Result]) -> dict[str, Figure]:
    quiet = [turn for turn in turns if turn.foreign_load <= LOUD]
    used = quiet or turns
    names = dict.fromkeys(name for turn in used for name in turn.figures)
    return {name: _figure([turn.figures[name] for turn in used if name in turn.figures], not quiet) for name in names}


def _figure(values: Sequence[float], loud: bool) -> Figure:
    return Figure(statistics.median(values), min(values), max(values), len(values), loud)


def _failed(turns: Sequence[Result]) -> list[str]:
    failed = [turn for turn in turns if turn.missing or not turn.figures]
    return [f"{len(failed)} of {len(turns)} repeats failed: {_last_line(failed[-1].missing)}"] if failed else []


def _limits(entry: Entry, task: Task, figures: Mapping[str, Figure]) -> list[str]:
    """What a reader must know beside the figures."""
    limits: list[str] = []
    if task.measure == "drain" and entry.unfinished is None:
        limits.append("counts starts: it cannot be asked which ends are durable")
    if (again := figures.get("started_more_than_once")) and again.high > 0:
        limits.append(f"started up to {again.high:,.0f} times more than there were jobs")
    if (earliest := figures.get("earliest_ms")) and earliest.low < 0:
        limits.append(f"up to {-earliest.low:,.3g} ms too early")
    wanted = task.options.get("count")
    if task.measure in IN_TIME and wanted and (jobs := figures.get("jobs")) and jobs.low < wanted:
        limits.append(f"only {jobs.low:,.0f} of {wanted:,} jobs started in time to be counted")
    return limits


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip()[:200] if lines else "it gave no figures"
