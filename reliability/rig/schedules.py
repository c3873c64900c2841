"""One schedule, in a process of its own: its main thread's end is the server's."""

import asyncio
import logging
import shutil
import tempfile
import time
from pathlib import Path

import msgspec

from reliability.history import write_lines
from reliability.rig.run import play
from reliability.scenario import scenario

HISTORIES = Path(".chaos")
"""Where the histories of failed schedules are kept."""


class Outcome(msgspec.Struct, frozen=True):
    """What came of one schedule."""

    seed: int
    jobs: int
    faults: int
    seconds: float
    violations: list[str]


def play_one(seed: int) -> Outcome:
    """Play one schedule in this process."""
    logging.disable(logging.CRITICAL)
    began, played = time.monotonic(), scenario(seed)
    directory = Path(tempfile.mkdtemp(prefix="efrig-"))
    directory.chmod(0o755)  # Postgres runs under another account
    try:
        result = asyncio.run(play(played, directory))
        violations = [str(violation) for violation in result.violations]
        if violations:
            kept = HISTORIES / str(seed)
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(directory, kept, ignore=shutil.ignore_patterns("postgres"))
            write_lines(kept / "history.jsonl", result.evidence.entries)
            (kept / "scenario.json").write_bytes(msgspec.json.encode(played))
        return Outcome(seed, len(result.evidence.jobs), len(played.faults), time.monotonic() - began, violations)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
