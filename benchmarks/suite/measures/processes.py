"""Several worker processes under one ``eventflow worker --processes N``."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from benchmarks.contestants.supervised import DIRECTORY, ROOM, Starts
from benchmarks.suite.measures.figures import Figures
from benchmarks.suite.stage import Stage

FLOW = "benchmarks.contestants.supervised:flow"
BATCH = 1000
FILL_SECONDS = 30.0
READY_SECONDS = 30.0
DRAIN_SECONDS = 60.0
POLL_SECONDS = 0.01
KILL_SHARE = 0.2
"""Of the jobs, that have started when a process is killed."""
RESCUED = "SELECT count(*) FROM eventflow.any_job WHERE crashes > 0"
SUCCEEDED = "SELECT count(*) FROM eventflow.job_history WHERE state = 'succeeded'"


class Family:
    """
    The processes of one supervisor, by what each has started.

    Args:
        stage: Where they play.
        jobs: What they have to do.
    """

    def __init__(self, stage: Stage, jobs: int) -> None:
        self._stage = stage
        self.jobs = jobs
        self.members: list[Starts] = []

    @property
    def started(self) -> int:
        """Starts of all."""
        return sum(member.count for member in self.members)

    def look(self) -> None:
        """Find out who there is."""
        known = {member.pid for member in self.members}
        self.members += [each for each in Starts.all(self._stage.directory) if each.pid not in known]

    async def until_ended(self, *, seconds: float) -> int:
        """Wait until no job is left; returns how many are."""
        until = time.monotonic() + seconds
        while self.started < self.jobs and time.monotonic() < until:  # counting rows would disturb them
            self.look()
            await asyncio.sleep(POLL_SECONDS)
        while (left := await self._stage.unfinished()) and time.monotonic() < until:
            self.look()
            await asyncio.sleep(POLL_SECONDS)
        return left


@asynccontextmanager
async def _family(stage: Stage, processes: int, count: int) -> AsyncGenerator[Family]:
    """So many processes, all of them ready to begin with these jobs, by the file that lets them."""
    made = await stage.produce("many", count=count, batch=BATCH, limit=FILL_SECONDS)
    await stage.database.execute("VACUUM ANALYZE")
    family = Family(stage, made["count"] + 1)  # the producer's first
    variables = {DIRECTORY: str(stage.directory), ROOM: str(family.jobs)}
    async with stage.supervisor(FLOW, f"--processes={processes}", **variables) as supervisor:
        until = time.monotonic() + READY_SECONDS
        while len(family.members) < processes:
            if supervisor.returncode is not None or time.monotonic() > until:
                raise stage.failure()
            await asyncio.sleep(POLL_SECONDS)
            family.look()
        yield family


async def supervised(stage: Stage, *, processes: int, count: int = 200_000) -> Figures:
    """No-op jobs, from the first start to the last durable end."""
    async with _family(stage, processes, count) as family:
        (stage.directory / "begin").touch()
        left = await family.until_ended(seconds=DRAIN_SECONDS)
        ended = time.monotonic()
    jobs = family.jobs - left
    began = min(at for member in family.members for _, at in member)
    return {
        "per_second": jobs / (ended - began),
        "jobs": jobs,
        "smallest_share": min(member.count for member in family.members) / max(1, family.started),
        "started_more_than_once": family.started - jobs,
    }


async def crash(stage: Stage, *, processes: int = 2, count: int = 300_000) -> Figures:
    """
    One process is killed in the middle of a drain, and the supervisor replaces it.

    Only what the killed process had started may start once more; everything ends.
    """
    async with _family(stage, processes, count) as family:
        first = list(family.members)
        (stage.directory / "begin").touch()
        while family.started < KILL_SHARE * family.jobs:
            await asyncio.sleep(POLL_SECONDS)
        killed, killed_at = first[0], time.monotonic()
        os.kill(killed.pid, signal.SIGKILL)
        left = await family.until_ended(seconds=DRAIN_SECONDS)
        rescued = await stage.database.fetchval(RESCUED)
        succeeded = await stage.database.fetchval(SUCCEEDED)
    starts = Counter(number for member in family.members for number, _ in member)
    again = {number for number, times in starts.items() if times > 1}
    replacements = [at for member in family.members if member not in first for _, at in member]
    replaced = {"replaced_seconds": min(replacements) - killed_at} if replacements else {}
    return replaced | {
        "lost": family.jobs - succeeded - left,
        "unfinished": left,
        "rescued": rescued,
        "started_more_than_once": starts.total() - len(starts),
        "started_again_wrongly": len(again - {number for number, _ in killed}),
    }
