"""``python -m reliability.rig``: plays schedules of faults with real processes."""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import msgspec

from eventflow.devdb import EmbeddedPostgres, cached_template
from eventflow.ids import new_uuid
from reliability.reports import commit_number, keep
from reliability.rig.clocks import LIBRARY
from reliability.rig.ledger import ROOMY, Ledger
from reliability.rig.outcomes import Outcome, end_in_good_order, play_one
from reliability.rig.pooler import PROGRAM

NEEDS = "needs root, for a disk that can be full, pgbouncer and libfaketime (Debian: apt install pgbouncer faketime)"


def main() -> None:
    """Play, and report."""
    parser = argparse.ArgumentParser(prog="python -m reliability.rig", description=__doc__)
    parser.add_argument("--seed", type=int, help="play this one")
    parser.add_argument("--first", type=int, help="the first of many; default: depends on the commit")
    parser.add_argument("--schedules", type=int, default=30, help="how many")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="so many at a time")
    parser.add_argument("--stop", action="store_true", help="end with the first that fails")
    parser.add_argument("--report", action="store_true", help="keep the results")
    options = parser.parse_args()
    end_in_good_order()
    if os.geteuid() or PROGRAM is None or LIBRARY is None:
        parser.error(NEEDS)
    first = commit_number() * 1000 if options.first is None else options.first
    seeds = [options.seed] if options.seed is not None else range(first, first + options.schedules)
    outcomes: list[Outcome] = []
    began = time.monotonic()
    for outcome in _play(seeds, options.processes):
        outcomes.append(outcome)
        if options.report:
            keep("chaos", [msgspec.to_builtins(outcome)])
        verdict = "; ".join(outcome.violations[:3]) or "ok"
        told = f"{outcome.jobs:3} jobs {sum(outcome.faults.values()):2} faults {outcome.seconds:4.0f} s  {verdict}"
        print(f"SEED={outcome.seed:<14} {told}", flush=True)
        if outcome.violations and options.stop:
            break
    failed = [outcome for outcome in outcomes if outcome.violations]
    jobs = sum(outcome.jobs for outcome in outcomes)
    print(f"{len(outcomes)} schedules, {jobs:,} jobs, {len(failed)} failed, {time.monotonic() - began:.0f} s")
    raise SystemExit(1 if failed else 0)


def _play(seeds: Iterable[int], processes: int) -> Iterator[Outcome]:
    """Each in a process of its own, with one ledger for all, in a server that nothing happens to."""
    with tempfile.TemporaryDirectory(prefix="efledger-") as directory:
        Path(directory).chmod(0o755)  # as root, the server runs under another account
        with EmbeddedPostgres(Path(directory) / "postgres", template=cached_template(), settings=ROOMY) as server:
            asyncio.run(_open(server.dsn()))
            run = new_uuid()
            with ProcessPoolExecutor(processes, max_tasks_per_child=1) as pool:
                try:
                    for future in as_completed([pool.submit(play_one, seed, server.dsn(), run) for seed in seeds]):
                        yield future.result()
                finally:
                    pool.shutdown(cancel_futures=True)


async def _open(dsn: str) -> None:
    async with Ledger(dsn, "") as ledger:
        await ledger.create()


if __name__ == "__main__":
    main()
