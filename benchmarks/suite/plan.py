"""The cells of a run, in the order in which they are measured."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from benchmarks.contestants.catalogue import CATALOGUE
from benchmarks.contestants.entry import REPEATS, Entry


class Task(msgspec.Struct, frozen=True):
    """
    One measure, as a row of the table.

    Attributes:
        name: Of the row; also what ``ONLY`` chooses.
        measure: How it is taken; see ``benchmarks.suite.measures``.
        options: What it is given.
        only: The contestants; ``None``: all.
        repeats: How often each plays.
    """

    name: str
    measure: str
    options: Mapping[str, Any] = {}
    only: tuple[str, ...] | None = None
    repeats: int = REPEATS


class Cell(msgspec.Struct, frozen=True):
    """One contestant's turn at one task."""

    task: Task
    entry: Entry
    repeat: int

    @property
    def key(self) -> str:
        """A file's name."""
        return f"{self.task.name}.{self.entry.name}.{self.repeat}".replace(" ", "-").replace(",", "")


OURS = ("eventflow", "eventflow, not kept")
RAW = ("raw 100", "raw 1000")
CHURNED_PEERS = ("PgQueuer", "Oban", "Chancy")
OURS_100 = "benchmarks.contestants.ours:Batches100"

TASKS = (
    Task("enqueue-1", "enqueue", {"callers": 1}),
    Task("enqueue-20", "enqueue", {"callers": 20}),
    Task("bulk", "bulk"),
    Task("drain-1", "drain", {"workers": 1}),
    Task("drain-1-asyncio", "drain", {"workers": 1, "loop": "asyncio"}, only=OURS),
    Task("drain-2", "drain", {"workers": 2}),
    Task("drain-4", "drain", {"workers": 4}, repeats=1),
    Task("pickup", "pickup"),
    Task("pickup-8", "pickup", {"workers": 8}, repeats=1),
    Task("idle", "idle", repeats=1),
    Task("lateness", "lateness"),
    Task("lateness-asyncio", "lateness", {"loop": "asyncio"}, only=OURS[:1]),
    Task("lateness-parked", "lateness", {"parked": 1_000_000}, only=OURS[:1]),
    Task("one-instant", "lateness", {"count": 10_000, "spread": 0, "workers": 2}),
    Task("sustained", "sustained", repeats=1),
    Task("codec", "codec", only=OURS[:1]),
    Task("commands", "commands", only=OURS[:1]),
    Task("memory", "memory", {"count": 1_000_000}, only=OURS),
    Task("naps", "naps", only=OURS[:1], repeats=1),
    Task("durations", "durations", {"workers": 1, "long": 60}, only=OURS[:1], repeats=1),
    Task("durations-2", "durations", {"workers": 2, "long": 120}, only=OURS[:1], repeats=1),
    Task("supervised-1", "supervised", {"processes": 1}, only=OURS[:1]),
    Task("supervised-2", "supervised", {"processes": 2}, only=OURS[:1]),
    Task("supervised-4", "supervised", {"processes": 4}, only=OURS[:1], repeats=1),
    Task("crash", "crash", only=OURS[:1]),
    Task("commits-1", "committing", {"clients": 1}, only=OURS[:1], repeats=1),
    Task("commits-16", "committing", {"clients": 16}, only=OURS[:1]),
    Task("commits-64", "committing", {"clients": 64}, only=OURS[:1]),
    Task("commits-16x64", "committing", {"processes": 16, "listeners": 64}, only=OURS[:1]),
    Task("held-snapshot", "held_snapshot", {"count": 1_000_000, "idle": 16}, only=(*OURS, *RAW), repeats=1),
    Task(
        "held-snapshot-100",
        "held_snapshot",
        {"count": 1_000_000, "idle": 16, "way": OURS_100},
        only=OURS[:1],
        repeats=1,
    ),
    Task("no-snapshot", "held_snapshot", {"count": 1_000_000, "idle": 16, "held": False}, only=OURS[:1], repeats=1),
    Task("held-snapshot-300k", "held_snapshot", {"count": 300_000, "seconds": 45}, only=CHURNED_PEERS, repeats=1),
    Task("deep-backlog", "deep_backlog", {"waiting": 10_000_000, "turns": "fm++ff"}, only=(OURS[0], RAW[1]), repeats=1),
    Task("unknown-at-head", "deep_backlog", {"unknown": 100_000}, only=OURS[:1], repeats=1),
    Task("aside-at-head", "deep_backlog", {"unknown": 100_000, "aside": True}, only=OURS[:1], repeats=1),
    Task("analyzed-empty", "deep_backlog", {"waiting": 1_000_000, "analyzed": False}, only=OURS[:1], repeats=1),
)

SMOKE = (
    Task("enqueue-20", "enqueue", {"callers": 20, "seconds": 0.3}, repeats=1),
    Task("bulk", "bulk", {"count": 2000}, repeats=1),
    Task("drain-2", "drain", {"workers": 2, "count": 2000}, repeats=1),
    Task("pickup", "pickup", {"count": 20}, repeats=1),
    Task("idle", "idle", {"seconds": 1.0}, repeats=1),
    Task("lateness", "lateness", {"count": 20, "spread": 1.0}, repeats=1),
    Task("codec", "codec", {"rounds": 2, "calls": 100}, only=OURS[:1], repeats=1),
    Task("commands", "commands", {"jobs": 50, "rounds": 1, "events": 100}, only=OURS[:1], repeats=1),
    Task("memory", "memory", {"count": 40_000}, only=OURS[:1], repeats=1),
    Task("naps", "naps", {"count": 2000}, only=OURS[:1], repeats=1),
    Task("durations", "durations", {"workers": 1, "long": 60, "seconds": 0.5}, only=OURS[:1], repeats=1),
    Task("crash", "crash", {"count": 20_000}, only=OURS[:1], repeats=1),
    Task("commits-16", "committing", {"clients": 16, "rounds": 1}, only=OURS[:1], repeats=1),
    Task(
        "held-snapshot",
        "held_snapshot",
        {"count": 5000, "idle": 1, "pickups": 5, "rest": 0.2},
        only=OURS[:1],
        repeats=1,
    ),
    Task("deep-backlog", "deep_backlog", {"unknown": 100, "jobs": 2000, "turns": "fm"}, only=OURS[:1], repeats=1),
)


def cells(
    tasks: Sequence[Task], entries: Sequence[Entry] = CATALOGUE, *, most_repeats: int = REPEATS
) -> Iterator[Cell]:
    """Interleaved: each repeat has all contestants, one after the other."""
    for task in tasks:
        for repeat in range(min(task.repeats, most_repeats)):
            for entry in entries:
                takes_part = (task.only is None or entry.name in task.only) and task.measure not in entry.lacks
                if takes_part and repeat < entry.repeats:
                    yield Cell(task, entry, repeat)
