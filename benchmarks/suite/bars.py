"""
The bars: what the figures of one run have to reach, each as a ratio of two sides or a limit of its own.

Both sides are medians over the repeats, except where one repeat that fails is one too many. Where several contestants
may stand on the other side, the best of them does.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from benchmarks.suite.plan import OURS
from benchmarks.suite.summary import Figure, Role, Standings

KEPT, NOT_KEPT = OURS


class UnknownError(LookupError):
    """A figure that a bar needs has not been measured."""


class Known(msgspec.Struct, frozen=True):
    """One side of a bar: its value, whose it is, and whether others used the machine."""

    value: float
    of: str
    loud: bool = False


Side = Callable[[Standings], Known]
"""Looks a side up. Raises ``UnknownError``."""


def of(name: str, task: str, figure: str, *, scale: float = 1.0, worst: str = "median") -> Side:
    """A contestant's figure; *worst* may be ``low`` or ``high``."""

    def side(standings: Standings) -> Known:
        found = _figure(standings, name, task, figure)
        value: float = getattr(found, worst)
        return Known(value * scale, name, found.loud)

    return side


def best(role: Role, task: str, figure: str, *, lowest: bool = False) -> Side:
    """The best of those who play a role, as far as they have been measured."""

    def side(standings: Standings) -> Known:
        known: list[Known] = []
        for name, standing in standings.items():
            if standing.role == role and figure in standing.figures.get(task, {}):
                known.append(of(name, task, figure)(standings))
        if not known:
            raise UnknownError(f"{figure} of {task}, by any {role}")
        return (min if lowest else max)(known, key=lambda each: each.value)

    return side


def times(factor: float, side: Side) -> Side:
    """A multiple of a side."""

    def scaled(standings: Standings) -> Known:
        known = side(standings)
        return Known(known.value * factor, f"{factor:g} times {known.of}", known.loud)

    return scaled


@dataclass(frozen=True)
class Bar:
    """
    One bar.

    Attributes:
        what: What is asked for.
        ours: Our side.
        other: What it is divided by; ``None``: it stands for itself.
        at_least: The bound, or
        at_most: the bound from above.
        unit: Of both sides.
    """

    what: str
    ours: Side
    other: Side | None = None
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""


class Verdict(msgspec.Struct, frozen=True):
    """
    What came of a bar.

    Attributes:
        ours: Our side; ``None``: not measured, and so is what depends on it.
        value: The ratio, or our side itself.
    """

    what: str
    unit: str
    bound: str
    ours: Known | None = None
    other: Known | None = None
    value: float | None = None
    met: bool | None = None


def judge(bar: Bar, standings: Standings) -> Verdict:
    """Hold the figures against a bar."""
    bound = f"≥ {bar.at_least:,g}" if bar.at_least is not None else f"≤ {bar.at_most:g}"
    verdict = Verdict(bar.what, bar.unit, bound)
    try:
        ours = bar.ours(standings)
        verdict = msgspec.structs.replace(verdict, ours=ours)
        other = bar.other(standings) if bar.other else None
    except UnknownError:
        return verdict
    if other and not other.value:
        return verdict
    value = ours.value / other.value if other else ours.value
    met = (bar.at_least is None or value >= bar.at_least) and (bar.at_most is None or value <= bar.at_most)
    return msgspec.structs.replace(verdict, other=other, value=value, met=met)


def _figure(standings: Standings, name: str, task: str, figure: str) -> Figure:
    standing = standings.get(name)
    found = standing.figures.get(task, {}).get(figure) if standing else None
    if found is None:
        raise UnknownError(f"{figure} of {task}, by {name}")
    return found


RATE = "per_second"
RAW_SHARE, PEER_TIMES, KEPT_SHARE = 0.7, 2.5, 0.75


def _asked_rate(standings: Standings) -> Known:
    """The drain that the first bars ask of the default configuration, by one process: two may not be slower."""
    asked = [times(RAW_SHARE * KEPT_SHARE, best("raw", "drain-1", RATE))(standings)]
    with suppress(UnknownError):
        asked.append(times(PEER_TIMES * KEPT_SHARE, best("peer", "drain-1", RATE))(standings))
    return max(asked, key=lambda each: each.value)


def _asked_end(standings: Standings) -> Known:
    rate = _asked_rate(standings)
    return Known(10_000 / rate.value * 1000, f"10,000 jobs at {rate.of}", rate.loud)


def _drain() -> Iterator[Bar]:
    one = of(NOT_KEPT, "drain-1", RATE)
    yield Bar("drain, not kept / raw", one, best("raw", "drain-1", RATE), at_least=RAW_SHARE, unit="/s")
    yield Bar("drain, not kept / best peer", one, best("peer", "drain-1", RATE), at_least=PEER_TIMES, unit="/s")
    yield Bar("drain, kept / not kept", of(KEPT, "drain-1", RATE), one, at_least=KEPT_SHARE, unit="/s")
    for name in OURS:
        two = of(name, "drain-2", RATE)
        yield Bar(f"{name}: drain, 2 processes / 1", two, of(name, "drain-1", RATE), at_least=1.0, unit="/s")
        yield Bar(f"{name}: drain, smaller share of 2", of(name, "drain-2", "smallest_share"), at_least=0.4)


def _enqueue() -> Iterator[Bar]:
    raw = best("raw", "bulk", RATE)
    yield Bar("bulk enqueue / raw COPY", of(KEPT, "bulk", RATE), raw, at_least=0.8, unit="/s")
    raw = best("raw", "enqueue-20", RATE)
    yield Bar("enqueue, 20 callers / raw", of(KEPT, "enqueue-20", RATE), raw, at_least=1.2, unit="/s")


def _latency() -> Iterator[Bar]:
    raw = best("raw", "pickup", "pickup_p50_ms", lowest=True)
    yield Bar("pickup, p50 / raw", of(KEPT, "pickup", "pickup_p50_ms"), raw, at_most=1.3, unit="ms")
    yield Bar("pickup, p99", of(KEPT, "pickup", "pickup_p99_ms"), at_most=5.0, unit="ms")
    for how, task in (
        ("uvloop", "lateness"),
        ("asyncio", "lateness-asyncio"),
        ("1 million parked", "lateness-parked"),
    ):
        yield Bar(f"lateness, {how}: p50", of(KEPT, task, "late_p50_ms"), at_most=1.0, unit="ms")
        yield Bar(f"lateness, {how}: p99", of(KEPT, task, "late_p99_ms"), at_most=5.0, unit="ms")
        earliest = of(KEPT, task, "earliest_ms", worst="low")
        yield Bar(f"lateness, {how}: earliest of all repeats", earliest, at_least=0.0, unit="ms")


def _one_instant() -> Iterator[Bar]:
    latest = of(KEPT, "one-instant", "latest_ms")
    yield Bar("10,000 at one instant: last start / end of a drain", latest, _asked_end, at_most=1.0, unit="ms")
    started = of(KEPT, "one-instant", "jobs", worst="low")
    yield Bar("10,000 at one instant: started", started, at_least=10_000, unit="jobs")
    share = of(KEPT, "one-instant", "smallest_share")
    yield Bar("10,000 at one instant: smaller share of 2", share, at_least=0.4)


def _quiet() -> Iterator[Bar]:
    yield Bar("idle worker: statements", of(KEPT, "idle", "statements_per_second"), at_most=2.0, unit="/s")
    yield Bar("idle worker: CPU", of(KEPT, "idle", "cpu_percent"), at_most=0.5, unit="%")
    yield Bar("statements per sparse job, 1 worker", of(KEPT, "pickup", "statements_per_job"), at_most=6.0)
    yield Bar("statements per sparse job, 8 workers", of(KEPT, "pickup-8", "statements_per_job"), at_most=10.0)
    for name in OURS:
        slope = of(name, "drain-1", "memory_bytes_per_100k_jobs", scale=1e-6)
        yield Bar(f"{name}: memory per 100,000 jobs", slope, at_most=0.1, unit="MB")


BARS = (*_drain(), *_enqueue(), *_latency(), *_one_instant(), *_quiet())
