"""Plays a scenario with real processes, and says what was wrong."""

import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any, NamedTuple
from uuid import UUID

import anyio
import asyncpg
import msgspec

from eventflow import JobId, WorkerId
from eventflow.jobs.publish_command import NAME_PREFIX
from eventflow.postgres.listener import PROOF_INTERVAL, PROOF_SECONDS
from reliability.asking import account_id
from reliability.checker import Violation, check
from reliability.faults import Fault
from reliability.history import (
    PROBE,
    AnyEntry,
    Asked,
    Changed,
    Deposits,
    Evidence,
    Failed,
    Joined,
    Rescued,
    Stopped,
    read_lines,
)
from reliability.rig.world import RealProcess, World, start_producer, start_worker, until
from reliability.scenario import LATE_SECONDS, ON_THE_SERVER, RECOVERY_SECONDS, SETTINGS, Ask, PlannedFault, Scenario

START_SECONDS = 20.0
PROBED = 4
"""Of so many seeds one is probed in the end: whether a job is noticed at once."""
MESSAGES = 12
"""An answer is lost within so many messages."""
UNFINISHED = "SELECT (SELECT count(*) FROM eventflow.job) + (SELECT count(*) FROM eventflow.running)"
JOBS = "SELECT id, name, payload FROM eventflow.any_job"
WORKERS = "SELECT id, pid, started_at FROM eventflow.worker"
EVENTS = """
SELECT aggregate_id, stream_version, data::text AS data FROM eventflow.event
WHERE aggregate_name = 'Account' ORDER BY aggregate_id, stream_version
"""
DEAFEN = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1"


class Result(NamedTuple):
    """What came of a schedule."""

    violations: list[Violation]
    evidence: Evidence


async def play(scenario: Scenario, directory: Path) -> Result:
    """One run of a scenario; its diaries and logs stay in the directory."""
    async with World.open(directory) as world:
        rig = Rig(scenario, world)
        try:
            evidence = await rig.run()
        finally:
            rig.kill_all()
    return Result(check(evidence), evidence)


class Seat:
    """Where a process runs; when it has died, another one."""

    def __init__(self, name: str, start: Callable[[str], Awaitable[RealProcess]]) -> None:
        self.name = name
        self.start = start
        self.generation = 0
        self.process: RealProcess


class Rig:
    """A run of a scenario."""

    def __init__(self, scenario: Scenario, world: World) -> None:
        self._scenario = scenario
        self._world = world
        self._entries: list[AnyEntry] = []
        self._workers = [
            Seat(f"worker-{number}", lambda name, plan=plan: start_worker(world, name, plan))
            for number, plan in enumerate(scenario.workers)
        ]
        self._producers = [
            Seat(f"producer-{number}", lambda name: start_producer(world, name)) for number in range(scenario.producers)
        ]
        self._processes: dict[int, RealProcess] = {}
        self._is_over = False
        self._began_at = 0.0

    async def run(self) -> Evidence:
        """From the first process to the last."""
        for seat in (*self._workers, *self._producers):
            await self._start(seat)
        await self._until_all_are_there()
        self._began_at = time.monotonic()
        steps: list[tuple[float, Callable[[], Awaitable[None]]]] = [
            *((ask.at, lambda ask=ask: self._ask(ask)) for ask in self._scenario.asks),
            *((fault.at, lambda fault=fault: self._fail(fault)) for fault in self._scenario.faults),
        ]
        for at, step in sorted(steps, key=lambda step: step[0]):
            await anyio.sleep(max(0.0, self._began_at + at - time.monotonic()))
            await step()
        lengths = (fault.at + fault.seconds for fault in self._scenario.faults if fault.fault in _FAILURES)
        await anyio.sleep(max(0.0, self._began_at + max(lengths, default=0.0) - time.monotonic()))
        await self._heal()
        healed_at = time.monotonic()
        await anyio.sleep(LATE_SECONDS)
        while not await self._is_settled() and time.monotonic() < healed_at + RECOVERY_SECONDS:
            await anyio.sleep(0.1)
        ended_at = time.monotonic()
        self._is_over = True
        if self._scenario.seed % PROBED == 0:
            await self._probe()
        left_over = await self._stop_all()
        return await self._evidence(healed_at, ended_at, left_over)

    def kill_all(self) -> None:
        """Whatever happened, nobody stays."""
        self._is_over = True
        for process in self._processes.values():
            process.send(SIGCONT)
            process.send(SIGKILL)
            process.process.wait()

    # Processes

    async def _start(self, seat: Seat) -> None:
        if self._is_over:
            return
        seat.generation += 1
        seat.process = await seat.start(f"{seat.name}.{seat.generation}")
        self._processes[seat.process.process.pid] = seat.process
        self._world.group.start_soon(self._watch, seat, seat.process)

    async def _watch(self, seat: Seat, process: RealProcess) -> None:
        """Start another when it has ended, whyever."""
        code = await process.ended()
        now = time.monotonic()
        if process.stop_asked_at is not None and code != -SIGKILL:
            self._entries.append(Stopped(now, process.name, now - process.stop_asked_at, SETTINGS.grace_period))
        await anyio.sleep(0.3)
        if seat.process is process:
            await self._start(seat)

    async def _until_all_are_there(self) -> None:
        logs = [self._world.directory / f"{seat.process.name}.log" for seat in (*self._workers, *self._producers)]
        signs = ("worker.started", "ready")

        def are_there() -> bool:
            return all(any(sign in log.read_text() for sign in signs) for log in logs)

        if not await until(are_there, START_SECONDS):
            raise RuntimeError("\n".join(log.read_text()[-1000:] for log in logs))

    async def _ask(self, ask: Ask) -> None:
        with suppress(BrokenPipeError):
            self._producers[ask.producer].process.ask(ask)

    async def _probe(self) -> None:
        await anyio.sleep(PROOF_INTERVAL + PROOF_SECONDS + 1)
        await self._ask(Ask(at=0, producer=0, number=PROBE, what="work"))
        await anyio.sleep(1)

    async def _stop_all(self) -> list[str]:
        seats = [seat for seat in (*self._workers, *self._producers) if seat.process.runs]
        for seat in seats:
            if seat.process.stop_asked_at is None:
                seat.process.stop()
        if await until(lambda: not any(seat.process.runs for seat in seats), RECOVERY_SECONDS):
            await anyio.sleep(0.05)  # for those who watch
            return []
        return [f"{seat.process.name} does not stop" for seat in seats if seat.process.runs]

    async def _is_settled(self) -> bool:
        if any(not s.process.runs or s.process.stop_asked_at for s in (*self._workers, *self._producers)):
            return False
        if any(self._pending(seat.process) for seat in self._producers):
            return False
        async with self._world.admin() as admin:
            return await admin.fetchval(UNFINISHED) == 0

    def _pending(self, process: RealProcess) -> set[int]:
        """Calls that have not been answered."""
        diary = self._world.directory / f"{process.name}.jsonl"
        entries = read_lines(diary) if diary.exists() else []
        return process.asked - {entry.number for entry in entries if isinstance(entry, Asked)}

    # Failing

    async def _fail(self, planned: PlannedFault) -> None:
        if planned.fault not in _FAILURES:
            return
        process = [*self._workers, *self._producers][planned.target].process
        target = "server" if planned.fault in ON_THE_SERVER else process.name
        self._entries.append(Failed(time.monotonic(), planned.fault.value, target, planned.seconds))
        self._world.group.start_soon(_FAILURES[planned.fault], self, process, planned)

    async def _kill(self, process: RealProcess, planned: PlannedFault) -> None:
        process.send(SIGKILL)

    async def _freeze(self, process: RealProcess, planned: PlannedFault) -> None:
        process.send(SIGSTOP)
        await anyio.sleep(planned.seconds)
        process.send(SIGCONT)

    async def _ask_to_stop(self, process: RealProcess, planned: PlannedFault) -> None:
        if process.stop_asked_at is None:
            process.stop()

    async def _cut(self, process: RealProcess, planned: PlannedFault) -> None:
        process.proxy.hold()
        await anyio.sleep(planned.seconds)
        process.proxy.release()

    async def _reset(self, process: RealProcess, planned: PlannedFault) -> None:
        process.proxy.reset()

    async def _slow(self, process: RealProcess, planned: PlannedFault) -> None:
        process.proxy.delay = 0.001 * planned.amount
        await anyio.sleep(planned.seconds)
        process.proxy.delay = 0.0

    async def _refuse(self, process: RealProcess, planned: PlannedFault) -> None:
        process.proxy.refuse(True)
        await anyio.sleep(planned.seconds)
        process.proxy.refuse(False)

    async def _lose(self, process: RealProcess, planned: PlannedFault) -> None:
        """Of some message the answer; which one, depends on the seed."""
        process.proxy.cut_after(b"", passage=1 + planned.amount % MESSAGES)

    async def _deafen(self, process: RealProcess, planned: PlannedFault) -> None:
        with suppress(OSError, asyncpg.PostgresError):
            async with self._world.admin() as admin:
                await admin.execute(DEAFEN, f"eventflow listen {process.process.pid}")

    async def _restart(self, process: RealProcess, planned: PlannedFault) -> None:
        if self._world.server.running:
            self._world.server.stop("immediate")
            await anyio.sleep(planned.seconds)
            self._world.server.start()

    async def _heal(self) -> None:
        self._world.server.start()
        for process in self._processes.values():
            process.send(SIGCONT)
            process.proxy.release()
            process.proxy.delay = 0.0
            process.proxy.refuse(False)

    # What happened

    async def _evidence(self, healed_at: float, ended_at: float, left_over: list[str]) -> Evidence:
        entries = [*self._entries, *await self._seen_in_the_database()]
        for diary in self._world.directory.glob("*.jsonl"):
            entries += read_lines(diary)
        entries = [_moved(entry, self._began_at) for entry in entries]
        return Evidence(
            sorted(entries, key=lambda entry: entry.at),
            await self._deposits(),
            healed_at - self._began_at,
            ended_at - self._began_at,
            clock_was_set=False,
            doomed=self._scenario.doomed,
            cancelled=self._scenario.cancelled,
            left_over=left_over,
        )

    async def _seen_in_the_database(self) -> list[AnyEntry]:
        entries: list[AnyEntry] = []
        async with self._world.admin() as admin:
            jobs = {JobId.of(str(row["id"])): row for row in await admin.fetch(JOBS)}
            workers = await admin.fetch(WORKERS)
        for row in workers:
            process = self._processes[row["pid"]]
            entries.append(Joined(_monotonic(row["started_at"]), process.name, _worker_id(row["id"])))
        for seen in await self._world.transitions.all():
            row = jobs[seen.job_id]
            name, number = _what(row["name"], row["payload"])
            at = _monotonic(seen.at)
            entries.append(
                Changed(
                    *(at, seen.job_id, name, number, seen.left, seen.entered, seen.attempt, seen.claim_no),
                    *(seen.crashes, seen.worker_id, str(seen.transaction)),
                )
            )
        entries += _rescues(entries)
        return entries

    async def _deposits(self) -> list[Deposits]:
        accounts = map(account_id, self._scenario.accounts)
        found: dict[str, tuple[list[int], list[int]]] = {account: ([], []) for account in accounts}
        async with self._world.admin() as admin:
            for row in await admin.fetch(EVENTS):
                versions, numbers = found[row["aggregate_id"]]
                versions.append(row["stream_version"])
                numbers.append(msgspec.json.decode(row["data"])["number"])
        return [Deposits(account, versions, numbers) for account, (versions, numbers) in found.items()]


_FAILURES: dict[Fault, Callable[[Rig, RealProcess, PlannedFault], Coroutine[Any, Any, None]]] = {
    Fault.KILL: Rig._kill,
    Fault.FREEZE: Rig._freeze,
    Fault.STOP: Rig._ask_to_stop,
    Fault.CUT: Rig._cut,
    Fault.RESET: Rig._reset,
    Fault.SLOW: Rig._slow,
    Fault.REFUSE: Rig._refuse,
    Fault.LOSE: Rig._lose,
    Fault.DEAFEN: Rig._deafen,
    Fault.RESTART: Rig._restart,
}


def _monotonic(instant: datetime) -> float:
    """When it was by the machine's monotonic clock."""
    return time.monotonic() - (time.time() - instant.timestamp())


def _moved(entry: AnyEntry, by: float) -> AnyEntry:
    return msgspec.structs.replace(entry, at=entry.at - by)


def _worker_id(uuid: UUID) -> WorkerId:
    return WorkerId.of(str(uuid))


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
