"""Results that are kept, by commit, so that what several runs have shown adds up."""

import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).parents[1]
REPORTS = ROOT / "reports"
ENOUGH = 100
"""Tries from which on a 99th percentile says more than the longest."""


@cache
def commit() -> str:
    """The commit that was checked out at first, in short; with a plus if more than reports had been changed since."""
    name = _git("rev-parse", "--short=10", "HEAD")
    return name + ("+" if _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!reports") else "")


def commit_number() -> int:
    """A number that is another one for each commit."""
    return int(_git("rev-parse", "HEAD")[:7] or "0", 16)


def keep(kind: str, results: Iterable[Mapping[str, Any]]) -> None:  # Any: plain values
    """Add results to ``reports/<kind>.jsonl``, with the commit and the day."""
    REPORTS.mkdir(exist_ok=True)
    about = {"commit": commit(), "day": datetime.now(UTC).date().isoformat()}
    with (REPORTS / f"{kind}.jsonl").open("ab") as file:
        for result in results:
            file.write(msgspec.json.encode(about | dict(result)) + b"\n")


def summary(what: str, seconds: Sequence[float]) -> dict[str, Any]:
    """What is kept of many tries: the median, the longest, and of hundreds the 99th percentile."""
    ordered = sorted(seconds)
    figures = {"p50": _percentile(ordered, 0.5), "longest": ordered[-1]}
    if len(ordered) >= ENOUGH:
        figures["p99"] = _percentile(ordered, 0.99)
    return {"what": what, "tries": len(ordered)} | {name: round(figure, 2) for name, figure in figures.items()}


def kept(kind: str) -> list[dict[str, Any]]:
    """What has been kept, oldest first."""
    path = REPORTS / f"{kind}.jsonl"
    return msgspec.json.Decoder(dict[str, Any]).decode_lines(path.read_bytes()) if path.exists() else []


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _git(*arguments: str) -> str:
    found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip()
