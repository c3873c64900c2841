"""One schedule, in a process of its own: its main thread's end is the servers'."""

import asyncio
import logging
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from reliability.history import AnyEntry, write_lines
from reliability.rig.ledger import Ledger
from reliability.rig.run import Result, play
from reliability.rig.schedules import schedule
from reliability.scenario import Scenario

HISTORIES = Path(".chaos")
"""Where the histories of failed schedules are kept."""


class Outcome(msgspec.Struct, frozen=True):
    """What came of one schedule."""

    seed: int
    jobs: int
    faults: dict[str, int]
    seconds: float
    violations: list[str]


def play_one(seed: int, ledger_dsn: str, run: str) -> Outcome:
    """Play one schedule in this process; an error of the rig's own is told like a violation, and the others go on."""
    logging.disable(logging.CRITICAL)
    end_in_good_order()
    began, scenario = time.monotonic(), schedule(seed)
    kinds = [fault.fault.value for fault in scenario.faults]
    faults = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    directory = Path(tempfile.mkdtemp(prefix="efrig-"))
    directory.chmod(0o755)  # Postgres runs under another account
    try:
        result = asyncio.run(_play(scenario, directory, ledger_dsn, f"{run} {seed}"))
    except Exception as exc:  # noqa: BLE001 - it is told
        jobs, violations = 0, [f"the rig has failed: {exc!r}"]
        _keep(scenario, directory, ())
    else:
        jobs, violations = len(result.evidence.jobs), [str(violation) for violation in result.violations]
        if violations:
            _keep(scenario, directory, result.evidence.entries)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return Outcome(seed, jobs, faults, time.monotonic() - began, violations)


def end_in_good_order() -> None:
    """Have SIGTERM take servers, processes and mounts with this process, as Ctrl-C does."""

    def end(number: int, frame: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


async def _play(scenario: Scenario, directory: Path, ledger_dsn: str, run: str) -> Result:
    async with Ledger(ledger_dsn, run) as ledger:
        return await play(scenario, directory, ledger)


def _keep(scenario: Scenario, directory: Path, entries: Sequence[AnyEntry]) -> None:
    kept = HISTORIES / str(scenario.seed)
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(directory, kept, ignore=shutil.ignore_patterns("data", "bin", "disk"))
    write_lines(kept / "history.jsonl", entries)
    (kept / "scenario.json").write_bytes(msgspec.json.encode(scenario))
