"""``python -m reliability.simulator``: plays many seeds, or one and tells its story."""

import argparse
import gc
import logging
import os
import sys
import time
import warnings
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor, as_completed

import msgspec

from reliability.reports import commit_number, keep
from reliability.scenario import scenario
from reliability.simulator.run import play
from reliability.simulator.shrink import shrink

LOT = 50
"""Seeds that a process takes at a time."""


class Failure(msgspec.Struct, frozen=True):
    """A seed in which something was wrong."""

    seed: int
    violations: list[str]


class Lot(msgspec.Struct, frozen=True):
    """What came of some seeds."""

    seeds: int
    jobs: int
    faults: int
    failures: list[Failure]


def play_lot(first: int, count: int) -> Lot:
    """Play some seeds in this process."""
    jobs = faults = 0
    failures: list[Failure] = []
    for seed in range(first, first + count):
        played = scenario(seed)
        result = play(played)
        jobs += len(result.evidence.jobs)
        faults += len(played.faults)
        if result.violations:
            failures.append(Failure(seed, [str(violation) for violation in result.violations]))
        gc.collect()
    return Lot(count, jobs, faults, failures)


def play_many(first: int, count: int, processes: int) -> Generator[Lot]:
    """Play many seeds, in several processes."""
    with ProcessPoolExecutor(processes, initializer=_be_quiet) as pool:
        lots = [
            pool.submit(play_lot, begin, min(LOT, first + count - begin)) for begin in range(first, first + count, LOT)
        ]
        try:
            for lot in as_completed(lots):
                yield lot.result()
        finally:
            pool.shutdown(cancel_futures=True)


def tell(seed: int) -> bool:
    """Play one seed and print its story, as short as it can be made; whether all was well."""
    _be_quiet()
    played = scenario(seed)
    if play(played).violations:
        played = shrink(played)
    result = play(played)
    for entry in result.evidence.entries:
        print(entry)
    print(msgspec.json.encode(played).decode())
    for violation in result.violations:
        print(violation)
    return not result.violations


def _be_quiet() -> None:
    gc.disable()  # it would end what was killed, at whatever time
    gc.freeze()  # what is there now stays
    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")  # what a kill has cut off


def first_seed() -> int:
    """Another one for each commit, so that every run adds to what has been played."""
    return commit_number() * 100_000


def main() -> None:
    """Play, and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="play this one, and tell its story")
    parser.add_argument("--seeds", type=int, default=20_000, help="how many")
    parser.add_argument("--first", type=int, help="the first of them; default: depends on the commit")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--stop", action="store_true", help="at the first that fails")
    parser.add_argument("--report", action="store_true", help="keep the results")
    options = parser.parse_args()
    if options.seed is not None:
        raise SystemExit(0 if tell(options.seed) else 1)
    first = first_seed() if options.first is None else options.first
    began = time.monotonic()
    played = jobs = faults = 0
    failures: list[Failure] = []
    lots = play_many(first, options.seeds, options.processes)
    for lot in lots:
        played, jobs, faults = played + lot.seeds, jobs + lot.jobs, faults + lot.faults
        failures += lot.failures
        if failures and options.stop:
            break
    lots.close()
    print(f"seeds {first} to {first + options.seeds - 1}: {played:,} played in {time.monotonic() - began:.0f} s;"
          f" {jobs:,} jobs, {faults:,} faults, {len(failures)} seeds failed")  # fmt: skip
    for failure in sorted(failures, key=lambda failure: failure.seed)[:5]:
        print(f"  SEED={failure.seed}: {'; '.join(failure.violations[:3])}")
    if options.report:
        figures = {"first": first, "seeds": played, "jobs": jobs, "faults": faults, "failed": len(failures)}
        keep("simulator", [figures])
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is part of what a seed decides
        os.execve(sys.executable, [sys.executable, "-m", "reliability.simulator", *sys.argv[1:]],
                  os.environ | {"PYTHONHASHSEED": "0"})  # fmt: skip
    main()
