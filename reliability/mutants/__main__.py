"""``python -m reliability.mutants``: plants bugs, one at a time in a copy of the source, and sees who notices."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from reliability.mutants.catalogue import CHAOS, MUTANTS, SIMULATOR, Mutant
from reliability.reports import commit_number, keep

ROOT = Path(__file__).parents[2]
COPIED = ("eventflow", "reliability", "tests", "pyproject.toml")
LIMIT_SECONDS = 300.0


class Caught(msgspec.Struct, frozen=True):
    """
    What came of one.

    Attributes:
        by: What noticed it; ``""``: nothing did.
        how: What was seen.
    """

    name: str
    by: str
    how: str
    seconds: float


def hunt(mutant: Mutant) -> Caught:
    """Plant one and look whether it is noticed."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="eventflow-mutant-") as directory:
        root = Path(directory)
        root.chmod(0o755)  # Postgres reads it under another account
        for name in COPIED:
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, root / name)
        plant(mutant, root)
        code, told = _run(mutant, root)
    seconds = time.monotonic() - began
    if not code:
        return Caught(mutant.name, "", "", seconds)
    return Caught(mutant.name, mutant.caught_by, _how(mutant, told), seconds)


def plant(mutant: Mutant, root: Path) -> None:
    """Change the one place in a copy of the source."""
    path = root / mutant.path
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.before) != 1:
        raise SystemExit(f"{mutant.name}: {mutant.path} has {text.count(mutant.before)} places like the one to change")
    path.write_text(text.replace(mutant.before, mutant.after), encoding="utf-8")


def _run(mutant: Mutant, root: Path) -> tuple[int, str]:
    process = subprocess.Popen(
        _command(mutant),
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        told, _ = process.communicate(timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired as exc:
        process.terminate()  # it takes what it has started with it
        process.wait()
        raise SystemExit(f"{mutant.name}: {mutant.caught_by} has not ended after {LIMIT_SECONDS:g} s") from exc
    return process.returncode, told


def _command(mutant: Mutant) -> list[str]:
    first, processes = ("--first", str(mutant.first)), ("--processes", "1")
    if mutant.caught_by == SIMULATOR:
        seeds = ("--seeds", str(mutant.seeds))
        return [sys.executable, "-m", "reliability.simulator", *first, *seeds, *processes, "--stop"]
    if mutant.caught_by == CHAOS:
        schedules = ("--schedules", str(mutant.seeds))
        return [sys.executable, "-m", "reliability.rig", *first, *schedules, *processes, "--stop"]
    return [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.caught_by.split()]


def _how(mutant: Mutant, told: str) -> str:
    sign = r"SEED=.* I\d+: " if mutant.caught_by in (SIMULATOR, CHAOS) else "FAILED "
    found = [line.strip() for line in told.splitlines() if re.match(sign, line.strip())]
    if not found:  # it broke instead of failing, which says nothing
        raise SystemExit(f"{mutant.name}: {told[-4000:]}")
    return found[0].partition(" - ")[0][:200]


def chosen(names: str, some: int | None) -> Sequence[Mutant]:
    """Those that are named, or so many, others with every commit."""
    if names:
        wanted = set(names.split(","))
        if unknown := wanted - {mutant.name for mutant in MUTANTS}:
            raise SystemExit(f"no such bug: {', '.join(sorted(unknown))}")
        return [mutant for mutant in MUTANTS if mutant.name in wanted]
    if some is None:
        return MUTANTS
    first = commit_number() % len(MUTANTS)
    return [MUTANTS[(first + number) % len(MUTANTS)] for number in range(some)]


def main() -> None:
    """Hunt, and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="names, comma separated")
    parser.add_argument("--some", type=int, help="so many, others with every commit")
    parser.add_argument("--report", action="store_true", help="keep the results")
    options = parser.parse_args()
    hunted: list[Caught] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for caught in pool.map(hunt, chosen(options.only, options.some)):
            print(f"{caught.name:45} {caught.by or 'MISSED':40} {caught.seconds:5.0f} s  {caught.how}", flush=True)
            hunted.append(caught)
    missed = [caught.name for caught in hunted if not caught.by]
    print(f"{len(hunted) - len(missed)} of {len(hunted)} caught")
    if options.report:
        keep("mutants", [msgspec.to_builtins(caught) for caught in hunted])
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
