"""What the benchmarks' report makes of cells: medians, footnotes and bars."""

from pathlib import Path

import msgspec
import pytest

from benchmarks.contestants.entry import Entry
from benchmarks.suite.bars import BARS, Bar, best, judge, of
from benchmarks.suite.plan import TASKS, Task
from benchmarks.suite.report import Report, make, render, write
from benchmarks.suite.results import Result, save
from benchmarks.suite.summary import Standing, sum_up

MACHINE: dict[str, str | float] = {"processor": "AMD", "cores": 2.0, "memory_gib": 23.5, "python": "3.11.7"}
DRAIN = Task("drain-1", "drain", {"workers": 1})
INSTANT = Task("one-instant", "lateness", {"count": 10_000})


def entry(name: str, *, caveat: str = "", lacks: frozenset[str] = frozenset(), server: str = "postgres",
          unfinished: str | None = "SELECT 0") -> Entry:  # fmt: skip
    """A contestant."""
    return Entry(name, "m:C", (f"{name}==1",), "plain", unfinished, 100, caveat=caveat, lacks=lacks, server=server)


EVENTFLOW, NOT_KEPT = entry("eventflow"), entry("eventflow, not kept")
RAW, RAW_1000 = entry("raw 100", lacks=frozenset({"lateness"})), entry("raw 1000", lacks=frozenset({"lateness"}))
PEER, REDIS = entry("Peer"), entry("Quick", server="redis")
EVERYBODY = (EVENTFLOW, NOT_KEPT, RAW, RAW_1000, PEER, REDIS)


def cell(contestant: Entry, task: str = "drain-1", *, repeat: int = 0, load: float = 0.0, **figures: float) -> Result:
    """A cell that was measured."""
    return Result(task, contestant.name, repeat, figures, foreign_load=load)


def drained(*rates: float, loads: tuple[float, ...] = (), by: Entry = EVENTFLOW) -> list[Result]:
    """Repeats of a drain at these rates."""
    loads = loads or (0.0,) * len(rates)
    return [cell(by, repeat=n, load=load, per_second=rate) for n, (rate, load) in enumerate(zip(rates, loads))]  # noqa: B905


def standing(*results: Result, by: Entry = EVENTFLOW) -> Standing:
    """What is known of one contestant after these cells."""
    return sum_up(results, [by], [DRAIN, INSTANT])[by.name]


def report_of(*results: Result) -> Report:
    """The report on these cells."""
    return make(MACHINE, results, EVERYBODY)


def line(text: str, begin: str, *, nth: int = 0) -> list[str]:
    """The cells of the nth line that begins so."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {begin} ")]
    return [cell.strip() for cell in lines[nth].strip("|").split("|")]


def test_figure_is_the_median_with_its_spread() -> None:
    """Of three repeats the middle one counts, and the others are its spread."""
    figure = standing(*drained(100.0, 300.0, 110.0)).figures["drain-1"]["per_second"]

    assert (figure.median, figure.low, figure.high, figure.repeats, figure.loud) == (110.0, 100.0, 300.0, 3, False)


def test_repeat_under_foreign_load_is_left_out() -> None:
    """As long as one repeat was free of it."""
    figure = standing(*drained(100.0, 40.0, 30.0, loads=(0.1, 0.3, 1.5))).figures["drain-1"]["per_second"]

    assert (figure.median, figure.repeats, figure.loud) == (100.0, 1, False)


def test_repeats_that_were_all_under_foreign_load_are_marked() -> None:
    """They count, with a star, in the table and in the bars that need them."""
    loaded = drained(100.0, 80.0, 90.0, loads=(0.3, 0.3, 0.3))

    text = render(report_of(*loaded, *drained(100.0, by=NOT_KEPT)))

    assert line(text, "eventflow")[1] == r"90\* (80–100)"  # noqa: RUF001 - a range
    assert line(text, "drain, kept / not kept")[2] == r"0.9\*"


def test_contestant_that_was_missing_has_a_footnote() -> None:
    """With the last line of the reason; the same reason has one number."""
    missing = [Result("drain-1", name, 0, missing="Traceback\n  x\nNo Python 3.12\n") for name in ("Peer", "raw 100")]

    text = render(report_of(*missing, *drained(100.0)))

    assert line(text, "Peer")[1] == line(text, "raw 100")[1] == "— <sup>1</sup>"
    assert "\n1. No Python 3.12\n" in text


def test_repeat_that_failed_among_others_is_told() -> None:
    """The others count."""
    known = standing(*drained(100.0, 120.0), Result("drain-1", "eventflow", 2, missing="took longer than 180 s"))

    assert known.figures["drain-1"]["per_second"].repeats == 2
    assert known.notes["drain-1"] == ["1 of 3 repeats failed: took longer than 180 s"]


def test_contestant_without_a_turn_says_why() -> None:
    """What it cannot do is told apart from what this run left out."""
    late = cell(EVENTFLOW, "one-instant", latest_ms=9.0, jobs=10_000)

    known = sum_up([late, *drained(1.0, by=RAW), *drained(1.0, by=PEER)], EVERYBODY, [DRAIN, INSTANT])

    assert known["raw 100"].absent == {"one-instant": "it does not do this, or just as the row above"}
    assert known["Peer"].absent == {"one-instant": "not part of this run"}
    assert known["eventflow"].absent == {"drain-1": "not part of this run"}
    assert "raw 1000" not in known


@pytest.mark.parametrize(
    ("found", "note"),
    [
        (cell(PEER, per_second=1.0, started_more_than_once=3.0), "started up to 3 times more than there were jobs"),
        (cell(PEER, "one-instant", earliest_ms=-12.0, jobs=10_000), "up to 12 ms too early"),
        (cell(PEER, "one-instant", jobs=700), "only 700 of 10,000 jobs started in time to be counted"),
    ],
)
def test_figures_that_need_a_word_have_one(found: Result, note: str) -> None:
    """Jobs that started twice, too early, or not at all are told beside the figures they flatter."""
    assert standing(found, by=PEER).notes[found.task] == [note]


def test_drain_without_durable_ends_says_so() -> None:
    """Counting starts is not counting completions."""
    starts = entry("Peer", unfinished=None)

    assert standing(*drained(1.0, by=starts), by=starts).notes["drain-1"][0].startswith("counts starts")


def test_caveat_is_a_footnote_of_the_name() -> None:
    """Whoever reads the row sees that it does less."""
    text = render(make(MACHINE, drained(1.0, by=PEER), [entry("Peer", caveat="forgets jobs")]))

    assert line(text, "Peer")[0] == "Peer <sup>1</sup>"
    assert "\n1. forgets jobs\n" in text


def test_figures_of_the_server_are_not_shown_for_redis() -> None:
    """Postgres wrote nothing for a queue that is elsewhere, and that is not its merit."""
    text = render(report_of(cell(REDIS, per_second=1.0, wal_bytes_per_job=0.0, dead_tuples_per_job=0.0)))

    assert line(text, "Quick", nth=1)[1:] == ["— <sup>1</sup>", "— <sup>1</sup>"]


def test_columns_that_nobody_had_a_turn_at_are_named() -> None:
    """A part of the suite makes a small table."""
    text = render(report_of(*drained(19_034.0)))

    assert line(text, "eventflow") == ["eventflow", "19,000"]
    assert "Not measured: drain, 2; drain, 4; bulk enqueue; enqueue, 1 caller; enqueue, 20." in text


def test_who_had_no_turn_at_a_table_has_no_row_in_it() -> None:
    """What is measured of few is not a table of dashes."""
    text = render(report_of(*drained(1.0), *drained(1.0, by=PEER), cell(EVENTFLOW, "codec", codec_us=1.5)))

    table = text.partition("## Jobs in one process")[2].partition("##")[0]
    assert line(table, "eventflow") == ["eventflow", "1.5"]
    assert "Peer" not in table


def test_machine_is_one_line() -> None:
    """With units."""
    assert "\nAMD, 2 cores, 23.5 GiB, Python 3.11.7\n" in render(report_of(*drained(1.0)))


@pytest.mark.parametrize(("rate", "met"), [(69.0, False), (70.0, True)])
def test_ratio_is_against_the_best(rate: float, met: bool) -> None:
    """Of several on the other side the best counts; the bound itself is met."""
    known = sum_up([*drained(rate), *drained(50.0, by=RAW), *drained(100.0, by=RAW_1000)], EVERYBODY, [DRAIN])
    bar = Bar("x", of("eventflow", "drain-1", "per_second"), best("raw", "drain-1", "per_second"), at_least=0.7)

    verdict = judge(bar, known)

    assert (verdict.met, verdict.value) == (met, rate / 100)
    assert verdict.other is not None
    assert verdict.other.of == "raw 1000"


@pytest.mark.parametrize(("early", "met"), [(0.0, True), (-0.1, False)])
def test_limit_may_look_at_the_worst_repeat(early: float, met: bool) -> None:
    """One repeat with a job that is early is one too many."""
    found = [cell(EVENTFLOW, "one-instant", repeat=n, earliest_ms=at) for n, at in enumerate((1.0, early, 1.0))]
    bar = Bar("x", of("eventflow", "one-instant", "earliest_ms", worst="low"), at_least=0.0)

    assert judge(bar, sum_up(found, EVERYBODY, [INSTANT])).met is met


def test_bar_without_its_figures_is_not_measured() -> None:
    """Neither met nor missed; the side that is known is shown."""
    text = render(report_of(*drained(100.0, by=NOT_KEPT)))

    assert line(text, "drain, not kept / raw")[2:] == ["—", "100/s (eventflow, not kept)", "", "not measured"]


def test_redis_is_no_peer() -> None:
    """The bar against peers is against those on Postgres."""
    cells = [*drained(300.0, by=NOT_KEPT), *drained(100.0, by=PEER), *drained(900.0, by=REDIS)]

    assert line(render(report_of(*cells)), "drain, not kept / best peer")[2:] == [
        "3", "300/s (eventflow, not kept)", "100/s (Peer)", "met",
    ]  # fmt: skip


def test_one_instant_is_held_against_the_drain_that_the_bars_ask_for() -> None:
    """Three quarters of 2.5 times the best peer, where that is more than three quarters of 0.7 of raw."""
    cells = [*drained(20_000.0, by=RAW), *drained(10_000.0, by=PEER), cell(EVENTFLOW, "one-instant", latest_ms=500.0)]

    found = line(render(report_of(*cells)), "10,000 at one instant: last start / end of a drain")

    assert found[3:] == ["500 ms (eventflow)", "533 ms (10,000 jobs at 1.875 times Peer)", "met"]


FIGURES = [
    *("per_second", "smallest_share", "memory_bytes_per_100k_jobs"),
    *("pickup_p50_ms", "pickup_p99_ms", "statements_per_job"),
    *("late_p50_ms", "late_p99_ms", "earliest_ms", "latest_ms", "jobs"),
    *("statements_per_second", "cpu_percent"),
    *("over_bare_us", "core_percent"),
    *("commands_1_per_second", "commands_1_by_hand_per_second"),
    *("commands_16_per_second", "commands_16_by_hand_per_second"),
    *("events_per_second", "events_by_hand_per_second"),
    *("beside_long_p99_ms", "alone_p99_ms", "never_started"),
    *("lost", "unfinished", "started_again_wrongly"),
    *("with_per_second", "without_per_second"),
    *("fresh_per_second", "end_per_second", "fresh_pickup_p50_ms", "end_pickup_p50_ms"),
    *("few_claim_us", "many_claim_us"),
]
"""What the measures give that bars look at."""


def test_every_bar_can_be_measured() -> None:
    """Each names a task of the plan and a figure; none is misspelt."""
    figures = dict.fromkeys(FIGURES, 1.0)
    cells = [Result(task.name, who.name, 0, figures) for task in TASKS for who in EVERYBODY]

    assert [verdict.what for verdict in report_of(*cells).bars if verdict.met is None] == []


def test_report_is_written_beside_the_cells(tmp_path: Path) -> None:
    """For people, and for programs as it was made."""
    save(tmp_path / "machine.json", MACHINE)
    save(tmp_path / "cells" / "a.json", cell(EVENTFLOW, per_second=45_000.0))

    write(tmp_path)

    report = msgspec.json.decode((tmp_path / "report.json").read_bytes(), type=Report)
    assert report.contestants[0].figures["drain-1"]["per_second"].median == 45_000.0
    assert len(report.bars) == len(BARS)
    assert (tmp_path / "report.md").read_text() == render(report)
