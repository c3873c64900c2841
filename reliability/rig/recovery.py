"""
``python -m reliability.rig.recovery``: how long work stands still after a failure, with default settings.

- *half-open*: the listening connection of the only worker falls silent and stays open, until that is noticed; or all of
  its connections do, and only new ones work, until a job has ended.
- *promotion*: the primary dies, its replica is promoted at once, and proxies lead there. Until a job has ended.

A job comes every 50 ms. How long it takes after SIGKILL: ``python -m benchmarks.kill_to_restart``.
"""

import argparse
import asyncio
import logging
import os
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import anyio

from eventflow.devdb import EmbeddedPostgres, cached_template
from eventflow.jobs.worker import WorkerSettings
from reliability.faults import Fault
from reliability.reports import keep, summary
from reliability.rig.crew import Crew
from reliability.rig.ledger import ROOMY, Ledger
from reliability.rig.world import World, until
from reliability.scenario import Ask, PlannedFault, Scenario, WorkerPlan

EVERY_SECONDS = 0.05
"""A job comes so often."""
WARM_SECONDS = 1.0
LONGEST_SECONDS = 60.0
SESSION = "SELECT session_key FROM eventflow.worker WHERE closed_at IS NULL ORDER BY started_at DESC LIMIT 1"
STARTED = "worker.started"
FIRST_END = """
SELECT extract(epoch FROM min(at))::float8 FROM watched.change
WHERE entered_state = 'succeeded' AND at > to_timestamp($1)
"""
ONE_WORKER = Scenario(0, (WorkerPlan(),), 1, (), ())
WITH_REPLICA = Scenario(0, (WorkerPlan(),) * 2, 1, (), (PlannedFault(0.0, Fault.PROMOTE, 0, 0.0, 1),))


@asynccontextmanager
async def busy(scenario: Scenario, ledger_dsn: str) -> AsyncGenerator[tuple[World, Crew]]:
    """Workers of default settings for which there is something to do all the time."""
    with tempfile.TemporaryDirectory(prefix="efrig-") as name:
        directory = Path(name)
        os.chmod(directory, 0o755)  # noqa: PTH101 - Postgres runs under another account
        async with (
            Ledger(ledger_dsn, name) as ledger,
            World.open(scenario, directory, ledger, WorkerSettings()) as world,
        ):
            crew = Crew(scenario, world)
            try:
                await crew.start()
                world.group.start_soon(_feed, crew)
                await anyio.sleep(WARM_SECONDS)
                yield world, crew
            finally:
                crew.kill()


async def _feed(crew: Crew) -> None:
    for number in count(1):
        crew.ask(Ask(at=0.0, producer=0, number=number, what="work"))
        await anyio.sleep(EVERY_SECONDS)


async def half_open_listener(ledger_dsn: str, tries: int) -> list[float]:
    """Seconds until the worker shows another session, or none."""
    noticed: list[float] = []
    async with busy(ONE_WORKER, ledger_dsn) as (world, crew), world.admin() as admin:
        for _ in range(tries):
            while (session := await admin.fetchval(SESSION)) is None:
                await anyio.sleep(EVERY_SECONDS)
            since = time.monotonic()
            crew.workers[0].process.proxy.hold_listening()
            while await admin.fetchval(SESSION) == session:
                if time.monotonic() > since + LONGEST_SECONDS:
                    raise RuntimeError("nobody has noticed")
                await anyio.sleep(0.01)
            noticed.append(time.monotonic() - since)
            await anyio.sleep(WARM_SECONDS)
    return noticed


async def half_open(ledger_dsn: str, tries: int) -> list[float]:
    """Seconds until a job ends."""
    worked: list[float] = []
    async with busy(ONE_WORKER, ledger_dsn) as (world, crew):
        worker = crew.workers[0].process
        for _ in range(tries):
            starts, silent_at = crew.log(worker).count(STARTED), time.time()
            worker.proxy.hold()
            worker.proxy.forget()
            worked.append(await _first_end(world, silent_at + EVERY_SECONDS) - silent_at)
            if not await until(lambda: crew.log(worker).count(STARTED) > starts, LONGEST_SECONDS):  # noqa: B023
                raise RuntimeError("the lease of the silent connection is still used")
            worker.proxy.reset()  # the server still has sessions for those that are silent, and not so many
            await _first_end(world, time.time())
            await anyio.sleep(WARM_SECONDS)
    return worked


async def promotion(ledger_dsn: str, tries: int) -> list[float]:
    """Seconds until a job ends."""
    worked: list[float] = []
    for _ in range(tries):
        async with busy(WITH_REPLICA, ledger_dsn) as (world, _):
            died_at = time.time()
            await world.promote()
            worked.append(await _first_end(world, time.time()) - died_at)
    return worked


async def _first_end(world: World, after: float) -> float:
    """When the first job after this time ended; both in Unix time."""
    deadline = time.monotonic() + LONGEST_SECONDS
    async with world.admin() as admin:
        while (ended_at := await admin.fetchval(FIRST_END, after)) is None:
            if time.monotonic() > deadline:
                raise RuntimeError("no job ends any more")
            await anyio.sleep(0.01)
    return float(ended_at)


async def _measure(ledger_dsn: str, tries: int) -> dict[str, Sequence[float]]:
    async with Ledger(ledger_dsn, "") as ledger:
        await ledger.create()
    return {
        "half-open listening connection until it is noticed": await half_open_listener(ledger_dsn, tries),
        "half-open connections, all of them, until a job has ended": await half_open(ledger_dsn, tries),
        "death of the primary until a job has ended on its replica": await promotion(ledger_dsn, tries),
    }


def main() -> None:
    """Measure, and print what was seen."""
    parser = argparse.ArgumentParser(prog="python -m reliability.rig.recovery", description=__doc__)
    parser.add_argument("--tries", type=int, default=20, help="of each")
    parser.add_argument("--report", action="store_true", help="keep the results")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="efledger-") as directory:
        Path(directory).chmod(0o755)  # as root, the server runs under another account
        with EmbeddedPostgres(Path(directory) / "postgres", template=cached_template(), settings=ROOMY) as server:
            measured = asyncio.run(_measure(server.dsn(), options.tries))
    results = [summary(what, seconds) for what, seconds in measured.items()]
    for result in results:
        print(result)
    if options.report:
        keep("recovery", results)


if __name__ == "__main__":
    main()
