"""The report of a run: ``report.md`` for people, ``report.json`` for programs, and the plots that are made of it."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.contestants.catalogue import CATALOGUE
from benchmarks.contestants.entry import ROOT, Entry
from benchmarks.suite.bars import BARS, Bar, Known, Verdict, judge
from benchmarks.suite.environments import Environments
from benchmarks.suite.machine import Facts
from benchmarks.suite.plan import TASKS, Task
from benchmarks.suite.plots import REQUIREMENTS
from benchmarks.suite.results import Result, load, save
from benchmarks.suite.summary import LOUD, Figure, Standing, sum_up

NONE, STAR = "—", r"\*"


class Report(msgspec.Struct):
    """What came of a run."""

    machine: Facts
    contestants: list[Standing]
    bars: list[Verdict]


@dataclass(frozen=True)
class Column:
    """
    A figure, as a column shows it.

    Attributes:
        by_server: Counted by Postgres: says nothing of those who stand elsewhere.
    """

    title: str
    task: str
    figure: str
    by_server: bool = False


TABLES = {
    "Throughput, jobs per second": (
        Column("drain, 1 process", "drain-1", "per_second"),
        Column("drain, 2", "drain-2", "per_second"),
        Column("drain, 4", "drain-4", "per_second"),
        Column("bulk enqueue", "bulk", "per_second"),
        Column("enqueue, 1 caller", "enqueue-1", "per_second"),
        Column("enqueue, 20", "enqueue-20", "per_second"),
    ),
    "Latency, milliseconds": (
        Column("pickup, p50", "pickup", "pickup_p50_ms"),
        Column("pickup, p99", "pickup", "pickup_p99_ms"),
        Column("sustained, p50", "sustained", "pickup_p50_ms"),
        Column("sustained, p99", "sustained", "pickup_p99_ms"),
        Column("lateness, p50", "lateness", "late_p50_ms"),
        Column("lateness, p99", "lateness", "late_p99_ms"),
        Column("10,000 at one instant, latest", "one-instant", "latest_ms"),
    ),
    "Cost": (
        Column("idle, statements/s", "idle", "statements_per_second", by_server=True),
        Column("idle, CPU %", "idle", "cpu_percent"),
        Column("statements per sparse job", "pickup", "statements_per_job", by_server=True),
        Column("WAL bytes per job", "drain-1", "wal_bytes_per_job", by_server=True),
        Column("dead tuples per job", "drain-1", "dead_tuples_per_job", by_server=True),
    ),
    "Jobs in one process": (
        Column("encode and decode, µs", "codec", "codec_us"),
        Column("memory per 100,000 jobs, bytes", "memory", "memory_bytes_per_100k_jobs"),
        Column("jobs of 10 ms, per second", "naps", "per_second"),
        Column("no-op jobs beside", "naps", "no_op_per_second"),
        Column("sleeps alone", "naps", "plain_per_second"),
        Column("pickup beside long jobs, p99 ms", "durations", "beside_long_p99_ms"),
        Column("without, p99 ms", "durations", "alone_p99_ms"),
    ),
    "Processes under one supervisor": (
        Column("drain, 1 process", "supervised-1", "per_second"),
        Column("drain, 2", "supervised-2", "per_second"),
        Column("drain, 4", "supervised-4", "per_second"),
        Column("killed one replaced, s", "crash", "replaced_seconds"),
        Column("its jobs claimed again", "crash", "rescued"),
        Column("of these started twice", "crash", "started_more_than_once"),
    ),
    "Producers' commits per second": (
        Column("1 client", "commits-1", "without_per_second"),
        Column("1, workers woken", "commits-1", "with_per_second"),
        Column("16 clients", "commits-16", "without_per_second"),
        Column("16, workers woken", "commits-16", "with_per_second"),
        Column("64 clients", "commits-64", "without_per_second"),
        Column("64, workers woken", "commits-64", "with_per_second"),
        Column("16 processes, 64 listening", "commits-16x64", "without_per_second"),
        Column("the same, woken", "commits-16x64", "with_per_second"),
    ),
    "While a snapshot is held": (
        Column("1 million jobs: passed", "held-snapshot", "jobs"),
        Column("fresh, per second", "held-snapshot", "fresh_per_second"),
        Column("at the end", "held-snapshot", "end_per_second"),
        Column("pickup, p50 ms, fresh", "held-snapshot", "fresh_pickup_p50_ms"),
        Column("at the end, ms", "held-snapshot", "end_pickup_p50_ms"),
        Column("300,000 jobs: passed", "held-snapshot-300k", "jobs"),
        Column("fresh, /s", "held-snapshot-300k", "fresh_per_second"),
        Column("at the end, /s", "held-snapshot-300k", "end_per_second"),
    ),
    "Claim of a job, microseconds of the server": (
        Column("10,000 waiting", "deep-backlog", "few_claim_us"),
        Column("10 million", "deep-backlog", "many_claim_us"),
        Column("100,000 unknown at the head", "unknown-at-head", "many_claim_us"),
        Column("put aside", "aside-at-head", "many_claim_us"),
        Column("1 million, analyzed empty", "analyzed-empty", "many_claim_us"),
    ),
}


def write(results: Path) -> None:
    """Make the report of a folder of results, in that folder."""
    machine = msgspec.json.decode((results / "machine.json").read_bytes(), type=Facts)
    report = make(machine, load(results))
    save(results / "report.json", report)
    (results / "report.md").write_text(render(report))


def plot(results: Path, environments: Environments) -> None:
    """
    Draw the plots of a report that has been written, beside it.

    Raises:
        MissingError: what draws them cannot be installed.
    """
    python = environments.made(REQUIREMENTS)
    report = (results / "report.json").resolve()
    caches = {"MPLCONFIGDIR": str(python.parents[1]), "PYTHONPATH": str(ROOT)}
    subprocess.run([python, "-m", "benchmarks.suite.plots", report], check=True, env=os.environ | caches)


def make(
    machine: Facts,
    results: Sequence[Result],
    entries: Sequence[Entry] = CATALOGUE,
    tasks: Sequence[Task] = TASKS,
    bars: Sequence[Bar] = BARS,
) -> Report:
    """Sum up the cells, and hold them against the bars."""
    standings = sum_up(results, entries, tasks)
    return Report(machine, list(standings.values()), [judge(bar, standings) for bar in bars])


def render(report: Report) -> str:
    """The report as Markdown."""
    notes = Notes()
    parts = ["# Benchmarks", _machine(report.machine), HOW_TO_READ]
    for title, columns in TABLES.items():
        parts += [f"## {title}", _table(report.contestants, columns, notes)]
    parts += ["## Bars", _bars(report.bars)]
    if notes.texts:
        parts += ["## Notes", "\n".join(f"{number}. {text}" for number, text in enumerate(notes.texts, 1))]
    parts += ["## Contestants", _contestants(report.contestants)]
    return "\n\n".join(parts) + "\n"


HOW_TO_READ = (
    "Medians over the repeats, in brackets the lowest and the highest."
    f" `*`: others used more than {LOUD:g} cores before each repeat; where one was free of that, only such count."
    f" `{NONE}`: no figure, for the reason in the note."
)


class Notes:
    """Footnotes; the same text has one number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def refer(self, *texts: str) -> str:
        """The marks of these texts."""
        for text in texts:
            if text not in self.texts:
                self.texts.append(text)
        marks = ", ".join(str(self.texts.index(text) + 1) for text in texts)
        return f" <sup>{marks}</sup>" if marks else ""


def shown(value: float) -> str:
    """
    Three digits, or two behind the point: the rest is noise.

    >>> [shown(value) for value in (19_034.2, 384_000.0, 99.46, 3.14159, 0.004, 0.0)]
    ['19,000', '384,000', '99.5', '3.14', '0.004', '0']
    """
    if abs(value) >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}" if abs(value) >= 1 else f"{value:.2g}"


def _machine(facts: Mapping[str, str | float]) -> str:
    units = {"cores": "{:g} cores", "memory_gib": "{:g} GiB", "python": "Python {}", "postgres": "Postgres {}"}
    return ", ".join(units.get(name, "{}").format(value) for name, value in facts.items())


def _table(contestants: Sequence[Standing], columns: Sequence[Column], notes: Notes) -> str:
    """Only columns that somebody has had a turn at, and who had one; the other columns are named."""
    used = [column for column in columns if any(_has(standing, column) for standing in contestants)]
    contestants = [standing for standing in contestants if any(_has(standing, column) for column in used)]
    rows = [
        [
            standing.name + notes.refer(*filter(None, [standing.caveat])),
            *(_cell(standing, column, notes) for column in used),
        ]
        for standing in contestants
    ]
    left_out = [column.title for column in columns if column not in used]
    table = _markdown(["", *(column.title for column in used)], rows, numbers=True) if used else ""
    return "\n\n".join(filter(None, [table, f"Not measured: {'; '.join(left_out)}." if left_out else ""]))


def _has(standing: Standing, column: Column) -> bool:
    return column.task in standing.figures or column.task in standing.absent


def _cell(standing: Standing, column: Column, notes: Notes) -> str:
    if column.by_server and standing.role == "orientation":
        return NONE + notes.refer("it does not stand on Postgres")
    figure = standing.figures.get(column.task, {}).get(column.figure)
    if figure is None:
        why = standing.absent.get(column.task, "this figure was not among those measured")
        return NONE + notes.refer(why)
    return _figure(figure) + notes.refer(*standing.notes.get(column.task, ()))


def _figure(figure: Figure) -> str:
    median, low, high = shown(figure.median), shown(figure.low), shown(figure.high)
    spread = f" ({low}–{high})" if low != high else ""  # noqa: RUF001 - a range
    return median + (STAR if figure.loud else "") + spread


def _bars(bars: Sequence[Verdict]) -> str:
    rows = [
        [verdict.what, *_asked(verdict), _side(verdict.ours, verdict), _side(verdict.other, verdict), _outcome(verdict)]
        for verdict in bars
    ]
    return _markdown(["what", "asked", "measured", "ours", "divided by", ""], rows)


def _asked(verdict: Verdict) -> tuple[str, str]:
    """The bound and what was measured: exact enough to see on which side it is."""
    unit = "" if verdict.other else _unit(verdict.unit)
    if verdict.value is None:
        return verdict.bound, NONE
    exact = f"{verdict.value:,.3f}".rstrip("0").rstrip(".")
    loud = any(side and side.loud for side in (verdict.ours, verdict.other))
    return verdict.bound + unit, exact + unit + (STAR if loud else "")


def _side(known: Known | None, verdict: Verdict) -> str:
    if known is None:
        return ""
    if verdict.value is not None and verdict.other is None:
        return known.of
    return f"{shown(known.value)}{_unit(verdict.unit)} ({known.of})"


def _outcome(verdict: Verdict) -> str:
    if verdict.met is None:
        return "not measured"
    return "met" if verdict.met else "**not met**"


def _unit(unit: str) -> str:
    return unit if unit.startswith("/") else f" {unit}".rstrip()


def _contestants(contestants: Sequence[Standing]) -> str:
    rows = [
        [standing.name, " ".join(standing.requirements), standing.configuration, standing.caveat]
        for standing in contestants
    ]
    return _markdown(["", "installed", "configuration", "does less"], rows)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    rule = ["---", *(("--:" if numbers else "---") for _ in head[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows))
