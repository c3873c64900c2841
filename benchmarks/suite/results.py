"""What came of the cells, in files: ``cells/<key>.json`` and ``machine.json``."""

from pathlib import Path
from typing import Any

import msgspec


class Result(msgspec.Struct):
    """
    What came of a cell.

    Attributes:
        figures: Empty where it failed.
        missing: Why it did not take part.
        foreign_load: Processor time of the machine, in cores, just before it began.
    """

    task: str
    contestant: str
    repeat: int
    figures: dict[str, float] = {}
    missing: str = ""
    seconds: float = 0.0
    foreign_load: float = 0.0


def save(path: Path, found: Any) -> None:  # Any: whatever msgspec encodes
    """Write it as JSON for people and programs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")


def load(results: Path) -> list[Result]:
    """All cells that were measured."""
    return [msgspec.json.decode(path.read_bytes(), type=Result) for path in sorted((results / "cells").glob("*.json"))]
