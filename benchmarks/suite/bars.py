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


def of(name: str, task: str, figure: str, *, scale: float = 1.0, worst: str = "median", by: str | None = None) -> Side:
    """A contestant's figure; *worst* may be ``low`` or ``high``; *by* says whose it is, if not the contestant's."""

    def side(standings: Standings) -> Known:
        found = _figure(standings, name, task, figure)
        value: float = getattr(found, worst)
        return Known(value * scale, by or name, found.loud)

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
        slope = of(name, "memory", "memory_bytes_per_100k_jobs", scale=1e-6)
        yield Bar(f"{name}: memory per 100,000 jobs", slope, at_most=0.1, unit="MB")


def _codec() -> Iterator[Bar]:
    yield Bar("encode and decode a job: over msgspec", of(KEPT, "codec", "over_bare_us"), at_most=1.5, unit="µs")
    share = of(KEPT, "codec", "core_percent")
    yield Bar("encode and decode 20,000 jobs/s: of a core", share, at_most=5.0, unit="%")


def _commands() -> Iterator[Bar]:
    for what, figure, bound in (
        ("commands, 1 at a time", "commands_1", 0.75),
        ("commands, 16 at a time", "commands_16", 0.75),
        ("loading 1,000 events", "events", 0.7),
    ):
        by_hand = of(KEPT, "commands", f"{figure}_by_hand_per_second", by="by hand")
        ours = of(KEPT, "commands", f"{figure}_per_second")
        yield Bar(f"{what} / by hand", ours, by_hand, at_least=bound, unit="/s")


def _lasting() -> Iterator[Bar]:
    for task, workers in (("durations", "1 worker"), ("durations-2", "2 workers")):
        beside = of(KEPT, task, "beside_long_p99_ms", by="beside long jobs")
        alone = of(KEPT, task, "alone_p99_ms", by="without")
        yield Bar(f"pickup beside long jobs, p99 / without, {workers}", beside, alone, at_most=1.5, unit="ms")
        never = of(KEPT, task, "never_started", worst="high")
        yield Bar(f"beside long jobs, {workers}: never started", never, at_most=0, unit="jobs")


def _processes() -> Iterator[Bar]:
    two, one = of(KEPT, "supervised-2", RATE), of(KEPT, "supervised-1", RATE, by="--processes 1")
    yield Bar("drain, --processes 2 / 1", two, one, at_least=1.0, unit="/s")
    for what, figure in (
        ("lost", "lost"),
        ("not ended", "unfinished"),
        ("started again without need", "started_again_wrongly"),
    ):
        yield Bar(f"killed process: {what}", of(KEPT, "crash", figure, worst="high"), at_most=0, unit="jobs")


def _commits() -> Iterator[Bar]:
    for what, task in (
        ("16 clients", "commits-16"),
        ("64 clients", "commits-64"),
        ("16 processes, 64 listening", "commits-16x64"),
    ):
        woken = of(KEPT, task, "with_per_second", by="with wake-up")
        quiet = of(KEPT, task, "without_per_second", by="without")
        yield Bar(f"producers' commits, with wake-up / without, {what}", woken, quiet, at_least=0.95, unit="/s")


def _held_snapshot() -> Iterator[Bar]:
    for what, name, task in (
        ("kept", KEPT, "held-snapshot"),
        ("not kept", NOT_KEPT, "held-snapshot"),
        ("batches of 100", KEPT, "held-snapshot-100"),
    ):
        end, fresh = (of(name, task, f"{when}_per_second", by=when) for when in ("end", "fresh"))
        yield Bar(f"drain under a held snapshot, end / fresh, {what}", end, fresh, at_least=0.9, unit="/s")
        end, fresh = (of(name, task, f"{when}_pickup_p50_ms", by=when) for when in ("end", "fresh"))
        yield Bar(f"pickup under a held snapshot, p50, end / fresh, {what}", end, fresh, at_most=1.5, unit="ms")
    end = of(KEPT, "held-snapshot", "end_per_second", by="under a snapshot")
    without = of(KEPT, "no-snapshot", "end_per_second", by="without")
    yield Bar("drain, end, under a held snapshot / without one, kept", end, without, at_least=0.9, unit="/s")


def _deep_backlog() -> Iterator[Bar]:
    for what, task in (
        ("10 million waiting", "deep-backlog"),
        ("100,000 unknown at the head", "unknown-at-head"),
        ("100,000 put aside at the head", "aside-at-head"),
        ("1 million in a table analyzed empty", "analyzed-empty"),
    ):
        many = of(KEPT, task, "many_claim_us", by="beside these")
        few = of(KEPT, task, "few_claim_us", by="10,000 waiting")
        yield Bar(f"claim of a job, {what} / 10,000", many, few, at_most=1.3, unit="µs")


BARS = (
    *(*_drain(), *_enqueue(), *_latency(), *_one_instant(), *_quiet()),
    *(*_codec(), *_commands(), *_lasting(), *_processes()),
    *(*_commits(), *_held_snapshot(), *_deep_backlog()),
)
