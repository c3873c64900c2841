"""``python -m reliability.page``: makes the tables of ``docs/reliability.md`` from what is in ``reports/``."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reliability.mutants.catalogue import MUTANTS
from reliability.reports import ROOT, kept

PAGE = ROOT / "docs/reliability.md"


def page(text: str) -> str:
    """The page with its tables made anew: each stands between ``<!-- name -->`` and ``<!-- end -->``."""
    for name, lines in _TABLES.items():
        made = "\n".join(["<!-- " + name + " -->", "", *lines(), "", "<!-- end -->"])
        text, count = re.subn(rf"<!-- {name} -->.*?<!-- end -->", lambda _, made=made: made, text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"{PAGE} has {count} places for the table of the {name}")
    return text


def _simulator() -> list[str]:
    return _runs("seeds", kept("simulator"))


def _chaos() -> list[str]:
    return _runs(
        "schedules",
        [
            {
                **{name: outcome[name] for name in ("day", "commit", "jobs")},
                "first": outcome["seed"],
                "schedules": 1,
                "faults": sum(outcome["faults"].values()),
                "failed": bool(outcome["violations"]),
            }
            for outcome in kept("chaos")
        ],
    )


def _runs(what: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row for each day and commit."""
    if not runs:
        return ["Nothing has been kept yet."]
    by_commit: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        by_commit.setdefault((run["day"], run["commit"]), []).append(run)
    figures = (what, "jobs", "faults", "failed")
    rows = [
        (day, commit, f"{min(run['first'] for run in found):,}", *_sums(figures, found))
        for (day, commit), found in by_commit.items()
    ]
    return _table(("day", "commit", "first seed", *figures), [*rows, ("all", "", "", *_sums(figures, runs))])


def _sums(figures: Iterable[str], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"{sum(run[figure] for run in runs):,}" for figure in figures]


def _kinds() -> list[str]:
    faults: Counter[str] = Counter()
    for outcome in kept("chaos"):
        faults.update(outcome["faults"])
    return _table(("fault", "times"), [(name, f"{times:,}") for name, times in sorted(faults.items())])


def _recovery() -> list[str]:
    latest = {result["what"]: result for result in kept("recovery")}
    head = ("from", "tries", "median", "99th percentile", "longest", "commit")
    rows = [
        (what, str(run["tries"]), *(_seconds(run.get(figure)) for figure in ("p50", "p99", "longest")), run["commit"])
        for what, run in latest.items()
    ]
    return _table(head, rows) if rows else ["Nothing has been kept yet."]


def _bugs() -> list[str]:
    latest = {result["name"]: result for result in kept("mutants")}
    known = [(mutant, latest[mutant.name]) for mutant in MUTANTS if mutant.name in latest]
    rows = [
        (mutant.name, mutant.path.removeprefix("eventflow/"), result["by"] or "**nothing**", result["how"])
        for mutant, result in known
    ]
    caught = sum(bool(result["by"]) for _, result in known)
    return [f"{caught} of {len(known)} are caught.", "", *_table(("bug", "where", "caught by", "seen"), rows)]


def _seconds(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.2f} s"


_TABLES: Mapping[str, Callable[[], Sequence[str]]] = {
    "simulator": _simulator,
    "chaos": _chaos,
    "kinds": _kinds,
    "recovery": _recovery,
    "bugs": _bugs,
}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    plain = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return [_row(head), _row(["---"] * len(head)), *map(_row, plain)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(path: Path = PAGE) -> None:
    """Rewrite the page."""
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
