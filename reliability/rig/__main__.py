"""``python -m reliability.rig``: plays schedules of faults with real processes."""

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

import msgspec

from reliability.reports import commit_number, keep
from reliability.rig.schedules import Outcome, play_one


def main() -> None:
    """Play, and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="play this one")
    parser.add_argument("--first", type=int, help="the first of many; default: depends on the commit")
    parser.add_argument("--schedules", type=int, default=30, help="how many")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="so many at a time")
    parser.add_argument("--report", action="store_true", help="keep the results")
    options = parser.parse_args()
    first = commit_number() * 1000 if options.first is None else options.first
    seeds = [options.seed] if options.seed is not None else range(first, first + options.schedules)
    outcomes: list[Outcome] = []
    began = time.monotonic()
    with ProcessPoolExecutor(options.processes, max_tasks_per_child=1) as pool:
        for future in as_completed([pool.submit(play_one, seed) for seed in seeds]):
            outcome = future.result()
            outcomes.append(outcome)
            verdict = "; ".join(outcome.violations[:3]) or "ok"
            told = f"{outcome.jobs:3} jobs {outcome.faults} faults {outcome.seconds:4.0f} s  {verdict}"
            print(f"SEED={outcome.seed:<14} {told}", flush=True)
    failed = [outcome for outcome in outcomes if outcome.violations]
    print(f"{len(outcomes)} schedules, {len(failed)} failed, {time.monotonic() - began:.0f} s")
    if options.report:
        keep("chaos", [msgspec.to_builtins(outcome) for outcome in outcomes])
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
