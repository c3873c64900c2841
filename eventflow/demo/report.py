"""What happened, read back from the database."""

from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar

import msgspec

from eventflow.demo.statements import statement
from eventflow.postgres import Lane

T = TypeVar("T")

Percentiles = tuple[float, float] | None
"""p50 and p99 in milliseconds; ``None``: of nothing."""


class Progress(msgspec.Struct, frozen=True):
    """
    Where the jobs are at one moment.

    Attributes:
        scheduled: Acknowledged to the producer.
        claimed: In a worker's hands, but not started: most are not due yet.
        running: Their handlers have started.
        lateness_ms: Of what is done.
    """

    scheduled: int
    waiting: int
    claimed: int
    running: int
    done: int
    lateness_ms: Percentiles

    @property
    def idle(self) -> bool:
        """Nothing is left to be done."""
        return not (self.waiting or self.claimed or self.running)


class Hands(msgspec.Struct, frozen=True):
    """
    What workers hold at one moment.

    Attributes:
        now: The moment, by the database's clock.
        running: Jobs whose handlers have started.
        claimed: Jobs whose handlers have not.
    """

    now: datetime
    running: int
    claimed: int


class Figures(msgspec.Struct, frozen=True):
    """
    What came of the jobs; see ``select_figures.sql`` for how they are counted.

    Attributes:
        repeated: Jobs that were executed more than once.
        early: Executions that started before their due time, with no tolerance.
        lost: Jobs that never ran to their end.
        rescued: Jobs that were in the dead worker's hands.
        hit: Jobs that the dead worker held, or that were due while no worker was alive.
        all_ms: Lateness of all jobs.
        spared_ms: Lateness of the jobs that were due while a worker was alive.
        hit_ms: Lateness of the jobs that were hit.
        revived_after_ms: From the kill until the new worker had registered.
        rescued_after_ms: From the kill until the first of the dead worker's jobs started.
    """

    scheduled: int
    executed: int
    repeated: int
    early: int
    lost: int
    rescued: int
    hit: int
    all_ms: Percentiles
    spared_ms: Percentiles
    hit_ms: Percentiles
    revived_after_ms: float | None
    rescued_after_ms: float | None

    def problems(self) -> list[str]:
        """What went wrong, in sentences; empty if nothing did."""
        problems: list[str] = []
        if self.lost:
            problems.append(f"{_count(self.lost, 'job was', 'jobs were')} lost: scheduled, but never run to the end.")
        if self.early:
            problems.append(f"{_count(self.early, 'execution', 'executions')} started before the due time.")
        if not self.scheduled:
            problems.append("Nothing was scheduled.")
        return problems


async def read_progress(database: Lane) -> Progress:
    """Where the jobs are now."""
    return await _read(database, "select_progress", Progress)


async def is_registered(database: Lane, pid: int) -> bool:
    """Whether this process is known as a worker."""
    return bool(await database.fetch(statement("select_worker"), pid))


async def read_hands(database: Lane) -> Hands:
    """What workers hold now."""
    return await _read(database, "select_hands", Hands)


async def read_figures(database: Lane) -> Figures:
    """What came of the jobs."""
    return await _read(database, "select_figures", Figures)


async def _read(database: Lane, name: str, kind: type[T]) -> T:
    row = await database.fetchrow(statement(name))
    return msgspec.convert(dict(row or {}), kind)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def milliseconds(value: float | None) -> str:
    """
    A duration for people.

    >>> milliseconds(2.345), milliseconds(1234.5), milliseconds(None)
    ('2.3 ms', '1234 ms', '-')
    """
    if value is None:
        return "-"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def percentiles(values: Sequence[float] | None) -> str:
    """
    Two durations for people.

    >>> percentiles((2.345, 1234.5))
    '2.3 ms / 1234 ms'
    """
    return "-" if values is None else " / ".join(milliseconds(value) for value in values)
