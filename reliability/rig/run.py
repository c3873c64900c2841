"""Plays a scenario with real processes, and says what was wrong."""

import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from math import inf
from pathlib import Path
from random import Random
from typing import NamedTuple
from uuid import UUID

import anyio
import asyncpg
import msgspec
from anyio.abc import TaskGroup

from eventflow import JobId, WorkerId
from eventflow.jobs.publish_command import NAME_PREFIX
from eventflow.postgres.listener import PROOF_INTERVAL, PROOF_SECONDS
from reliability.asking import account_id
from reliability.checker import Violation, check
from reliability.history import PROBE, AnyEntry, Changed, Deposits, Evidence, Joined, Rescued, read_lines
from reliability.rig.crew import Crew
from reliability.rig.failing import Failures
from reliability.rig.ledger import Ledger
from reliability.rig.transitions import Transition
from reliability.rig.world import World
from reliability.scenario import LATE_SECONDS, RECOVERY_SECONDS, Ask, Scenario

LOOK_SECONDS = 0.1
WAKE_SECONDS = 0.5
"""For a job to start when all is well: other schedules have the processors too."""
PROBED = 4
"""Of so many seeds one is probed in the end: whether a job is noticed at once."""
UNFINISHED = """
SELECT count(*) FROM (SELECT id FROM eventflow.job UNION ALL SELECT id FROM eventflow.running) AS found
WHERE NOT id = ANY ($1)
"""
JOBS = "SELECT id, name, payload FROM eventflow.any_job"
WORKERS = "SELECT id, pid, started_at FROM eventflow.worker"
LISTENING = "SELECT pid FROM eventflow.worker WHERE closed_at IS NULL AND session_key IS NOT NULL"
EVENTS = """
SELECT aggregate_id, stream_version, data::text AS data FROM eventflow.event
WHERE aggregate_name = 'Account' ORDER BY aggregate_id, stream_version
"""


class Result(NamedTuple):
    """What came of a schedule."""

    violations: list[Violation]
    evidence: Evidence


async def play(scenario: Scenario, directory: Path, ledger: Ledger) -> Result:
    """One run of a scenario; its diaries and logs stay in the directory."""
    async with World.open(scenario, directory, ledger) as world:
        rig = Rig(scenario, world)
        try:
            evidence = await rig.run()
        finally:
            rig.crew.kill()
    return Result(check(evidence), evidence)


class Rig:
    """
    A run of a scenario.

    Attributes:
        crew: Who works in it.
    """

    def __init__(self, scenario: Scenario, world: World) -> None:
        self.crew = Crew(scenario, world)
        self._scenario = scenario
        self._world = world
        self._failures = Failures(world, self.crew, Random(scenario.seed))
        self._is_probed = scenario.seed % PROBED == 0
        self._began_at = 0.0

    async def run(self) -> Evidence:
        """From the first process to the last."""
        await self.crew.start()
        self._began_at = time.monotonic()
        async with anyio.create_task_group() as faults:  # it ends when all of them have passed
            await self._play(faults)
        await self._failures.heal()
        healed_at = time.monotonic()
        await anyio.sleep(LATE_SECONDS)
        while (waits_for := await self._waits_for()) and time.monotonic() < healed_at + RECOVERY_SECONDS:
            await anyio.sleep(LOOK_SECONDS)
        self.crew.amiss += waits_for
        ended_at = time.monotonic()
        self.crew.close()
        if self._is_probed:
            await self._probe()
        await self.crew.stop()
        return await self._evidence(healed_at, ended_at)

    async def _play(self, faults: TaskGroup) -> None:
        steps: list[tuple[float, Callable[[], Awaitable[None]]]] = [
            *((ask.at, lambda ask=ask: self._ask(ask)) for ask in self._scenario.asks),
            *((fault.at, lambda fault=fault: self._failures.begin(fault, faults)) for fault in self._scenario.faults),
        ]
        for at, step in sorted(steps, key=lambda step: step[0]):
            await self._until(at)
            await step()

    async def _until(self, at: float) -> None:
        await anyio.sleep(max(0.0, self._began_at + at - time.monotonic()))

    async def _ask(self, ask: Ask) -> None:
        self.crew.ask(ask)

    async def _probe(self) -> None:
        """Schedule a job once everybody listens again who can."""
        await anyio.sleep(PROOF_INTERVAL + PROOF_SECONDS + 1)
        async with self._world.admin() as admin:
            listening = {row["pid"] for row in await admin.fetch(LISTENING)}
        for plan, seat in zip(self._scenario.workers, self.crew.workers, strict=True):
            if not plan.is_pooled and seat.process.pid not in listening:
                self.crew.amiss.append(f"{seat.process.name} does not listen")
        self.crew.ask(Ask(at=0, producer=0, number=PROBE, what="work"))
        await anyio.sleep(1)

    async def _waits_for(self) -> list[str]:
        """Who is not there, and what has not come to its end."""
        found = self.crew.waits_for()
        if not found:
            async with self._world.admin() as admin:
                left = await admin.fetchval(UNFINISHED, [UUID(job_id.uuid) for job_id in self._failures.by_hand])
            found = [f"{left} jobs have not ended"] if left else []
        return found

    # What happened

    async def _evidence(self, healed_at: float, ended_at: float) -> Evidence:
        entries = [*self.crew.entries, *self._failures.entries, *await self._seen_in_the_database()]
        for diary in self._world.directory.glob("*.jsonl"):
            entries += read_lines(diary)
        entries = [msgspec.structs.replace(entry, at=entry.at - self._began_at) for entry in entries]
        return Evidence(
            sorted(entries, key=lambda entry: entry.at),
            await self._deposits(),
            healed_at - self._began_at,
            ended_at - self._began_at,
            clock_was_set=self._scenario.sets_the_clock,
            doomed=self._scenario.doomed,
            cancelled=self._scenario.cancelled,
            left_over=self.crew.amiss,
            ledger=await self._world.ledger.read(),
            children=self._scenario.children,
            is_probed=self._is_probed,
            wake_seconds=WAKE_SECONDS,
        )

    async def _seen_in_the_database(self) -> list[AnyEntry]:
        entries: list[AnyEntry] = []
        async with self._world.admin() as admin:
            jobs = {JobId.of(str(row["id"])): row for row in await admin.fetch(JOBS)}
            workers = await admin.fetch(WORKERS)
        for row in workers:
            process = self.crew.processes[row["pid"]]
            entries.append(Joined(self._monotonic(row["started_at"]), process.name, WorkerId.of(str(row["id"]))))
        at = float("-inf")
        for seen in await self._world.transitions.all():
            at = max(at, self._monotonic(seen.at, at))  # in the order of the log, whatever the server's clock showed
            if seen.job_id not in self._failures.by_hand:
                entries.append(_changed(at, seen, jobs.get(seen.job_id)))
        return entries + _rescues(entries)

    def _monotonic(self, instant: datetime, not_before: float = -inf) -> float:
        """When a time of the server's was, by the machine's monotonic clock."""
        offset = time.time() - time.monotonic()
        clock, stamp = self._world.servers.clock, instant.timestamp()
        return (stamp if clock is None else clock.shown_at(stamp, not_before + offset)) - offset

    async def _deposits(self) -> list[Deposits]:
        accounts = map(account_id, self._scenario.accounts)
        found: dict[str, tuple[list[int], list[int]]] = {account: ([], []) for account in accounts}
        async with self._world.admin() as admin:
            for row in await admin.fetch(EVENTS):
                versions, numbers = found[row["aggregate_id"]]
                versions.append(row["stream_version"])
                numbers.append(msgspec.json.decode(row["data"])["number"])
        return [Deposits(account, versions, numbers) for account, (versions, numbers) in found.items()]


def _changed(at: float, seen: Transition, job: "asyncpg.Record | None") -> Changed:
    name, number = ("a job", 0) if job is None else _what(job["name"], job["payload"])
    return Changed(
        *(at, seen.job_id, name, number, seen.left, seen.entered, seen.attempt),
        *(seen.claim_no, seen.crashes, seen.worker_id, str(seen.transaction)),
    )


def _what(name: str, payload: str) -> tuple[str, int]:
    number: int = msgspec.json.decode(payload).get("number", 0)
    return name.removeprefix(NAME_PREFIX), number


def _rescues(entries: list[AnyEntry]) -> list[AnyEntry]:
    """From crashes that were counted: which workers were taken for dead."""
    crashes: dict[JobId, int] = {}
    rescued: dict[WorkerId, Rescued] = {}
    for entry in entries:
        if isinstance(entry, Changed):
            if entry.crashes > crashes.get(entry.job_id, 0) and entry.worker_id is not None:
                rescued.setdefault(entry.worker_id, Rescued(entry.at, entry.worker_id))
            crashes[entry.job_id] = entry.crashes
    return list(rescued.values())
