"""Plays a scenario, and says what was wrong."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Any, NamedTuple

import anyio
import msgspec

from eventflow import App, JobId, JobRecord, ids
from eventflow.eventstore import StreamId
from eventflow.jobs.worker import Worker, WorkerSettings
from eventflow.postgres.listener import PROOF_INTERVAL, PROOF_SECONDS
from eventflow.supervision import LONGEST_PAUSE_SECONDS
from reliability.asking import Producer, account_id
from reliability.checker import ENDED, Violation, check
from reliability.faults import Fault
from reliability.history import PROBE, AnyEntry, Asked, Evidence, Failed, Stopped
from reliability.scenario import (
    LATE_SECONDS,
    ON_THE_SERVER,
    RECOVERY_SECONDS,
    SETTINGS,
    Ask,
    PlannedFault,
    Scenario,
    WorkerPlan,
)
from reliability.simulator.clocks import SimulatedClock
from reliability.simulator.loop import DeadlockError, SimulatedLoop
from reliability.simulator.machines import Machine
from reliability.simulator.server import Call, Server

LOOK_SECONDS = 0.25
STARTS_AGAIN = 0.5
"""Seconds after which a process that its own job has killed is started again."""
PROBED = 8
"""Of so many seeds one is probed in the end: whether a job is noticed at once."""
LONGEST_PROBE_SECONDS = 2.0


class Result(NamedTuple):
    """
    What came of a run.

    Attributes:
        violations: Everything that is wrong.
        evidence: What it was judged by.
        calls: All that the server has seen, if they were asked for.
        records: All jobs, as they were at the end.
    """

    violations: list[Violation]
    evidence: Evidence
    calls: Sequence[Call]
    records: Sequence[JobRecord]


def play(scenario: Scenario, *, with_calls: bool = False) -> Result:
    """One run of a scenario. The same scenario always goes the same way."""
    rng = Random(scenario.seed)
    loop = SimulatedLoop(rng)
    loop.set_exception_handler(lambda _loop, _context: None)  # tasks of killed processes
    asyncio.set_event_loop(loop)
    new_uuid, ids.new_uuid = ids.new_uuid, _uuids(loop)
    server = Server(loop)
    server.calls = [] if with_calls else None
    played = Play(scenario, loop, server, rng)
    try:
        evidence = loop.run(played.run())
    except DeadlockError as exc:
        evidence = played.evidence([f"the simulation stands still: {exc}"])
    finally:
        ids.new_uuid = new_uuid
        calls, server.calls = server.calls or (), None
        played.bury()
        asyncio.set_event_loop(None)
        loop.close()
    return Result(check(evidence), evidence, calls, server.records() if with_calls else ())


def _uuids(loop: SimulatedLoop) -> Callable[[], str]:
    """UUIDv7s of the simulated time."""
    numbers = itertools.count(1)

    def new() -> str:
        milliseconds = int(loop.time() * 1000) + 1_893_456_000_000
        return f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}-7000-8000-{next(numbers):012x}"

    return new


class Seat:
    """
    Where a process runs; when it has died, another one.

    Attributes:
        machine: The one that runs.
        task: What it does.
    """

    def __init__(self, name: str, plan: WorkerPlan) -> None:
        self.name = name
        self.plan = plan
        self.generation = 0
        self.machine: Machine
        self.task: asyncio.Task[None]
        self.stop: Callable[[], None] = lambda: None
        self.stop_asked_at: float | None = None
        self.app: App | None = None
        self.worker: Worker | None = None

    def free_slots(self) -> int:
        """Those of its worker, if it has its lease."""
        incarnation = None if self.worker is None else self.worker._incarnation
        return -1 if incarnation is None else incarnation._slots.free

    @property
    def runs(self) -> bool:
        """Somebody is there, and has not ended."""
        return self.machine.is_alive and not self.task.done()


class Play:
    """A run of a scenario."""

    def __init__(self, scenario: Scenario, loop: SimulatedLoop, server: Server, rng: Random) -> None:
        self._scenario = scenario
        self._loop = loop
        self._rng = rng
        self._clock = SimulatedClock(loop)
        self._entries: list[AnyEntry] = []
        self._server = server
        server.note = self._entries.append
        self._workers = [Seat(f"worker-{number}", plan) for number, plan in enumerate(scenario.workers)]
        self._producers = [Seat(f"producer-{number}", WorkerPlan()) for number in range(scenario.producers)]
        self._machines: list[Machine] = []
        self._asks: list[asyncio.Task[None]] = []
        self._job_ids: dict[int, JobId] = {}
        self._amiss: list[str] = []
        self._furthest = 0.0
        self._healed_at = 0.0
        self._is_over = False

    async def run(self) -> Evidence:
        """From the first process to the last."""
        for seat in (*self._workers, *self._producers):
            self._start(seat)
        steps: list[tuple[float, Callable[[], None]]] = [
            *((ask.at, lambda ask=ask: self._ask(ask)) for ask in self._scenario.asks),
            *((fault.at, lambda fault=fault: self._fail(fault)) for fault in self._scenario.faults),
        ]
        for at, step in sorted(steps, key=lambda step: step[0]):
            await self._until(at)
            step()
        await self._until(max((fault.at + _length(fault) for fault in self._scenario.faults), default=0.0))
        self._heal()
        await self._clock.sleep(LATE_SECONDS)
        while not self._is_settled() and self._loop.time() < self._healed_at + RECOVERY_SECONDS:
            await self._clock.sleep(LOOK_SECONDS)
        ended_at = self._loop.time()
        self._is_over = True
        if self._scenario.seed % PROBED == 0:
            await self._probe()
        await self._stop_all()
        return self.evidence(self._left_over(), ended_at)

    def evidence(self, left_over: list[str], ended_at: float | None = None) -> Evidence:
        """What can be said now."""
        scenario = self._scenario
        return Evidence(
            tuple(self._entries),
            self._server.deposits([StreamId("Account", account_id(account)) for account in scenario.accounts]),
            self._healed_at,
            self._loop.time() if ended_at is None else ended_at,
            clock_was_set=scenario.sets_the_clock,
            doomed=scenario.doomed,
            cancelled=scenario.cancelled,
            left_over=left_over,
        )

    def bury(self) -> None:
        """Let go of everything that was killed."""
        tasks: list[asyncio.Task[Any]] = []
        for machine in self._machines:
            machine.link.is_closed = True
            machine.revive()
            tasks += [task for task in machine.tasks if not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            with suppress(DeadlockError):
                self._loop.run(_wait_for(tasks))

    async def _probe(self) -> None:
        """Schedule a job once everybody listens again, and has all slots."""
        await self._clock.sleep(PROOF_INTERVAL + PROOF_SECONDS + LONGEST_PAUSE_SECONDS)
        for seat in (seat for seat in self._workers if seat.runs and seat.stop_asked_at is None):
            if not any(session.listens for session in seat.machine.link.sessions):
                self._amiss.append(f"{seat.machine.name} does not listen")
            if seat.free_slots() != seat.plan.concurrency:
                self._amiss.append(f"{seat.machine.name} has {seat.free_slots()} of {seat.plan.concurrency} slots")
        self._ask(Ask(at=self._loop.time(), producer=0, number=PROBE, what="work"))
        await self._clock.sleep(LONGEST_PROBE_SECONDS)

    # Processes

    def _start(self, seat: Seat) -> None:
        if self._is_over:
            return
        seat.generation += 1
        seat.stop_asked_at, seat.app, seat.stop = None, None, lambda: None
        seat.machine = Machine(
            f"{seat.name}.{seat.generation}",
            self._loop,
            self._server,
            self._entries.append,
            self._rng,
            rate=seat.plan.rate,
            ahead=seat.plan.ahead,
            is_new=seat.plan.is_new,
            died=lambda: self._died(seat),
        )
        self._machines.append(seat.machine)
        work = self._work if seat in self._workers else self._produce
        seat.task = seat.machine.main.start(work(seat))

    def _died(self, seat: Seat) -> None:
        seat.stop_asked_at = None
        self._later(STARTS_AGAIN, lambda: self._start(seat))

    async def _work(self, seat: Seat) -> None:
        async with seat.machine.app() as app:
            worker: Worker = app.create_worker(_settings(seat.plan))
            seat.stop, seat.worker = worker.stop, worker
            if seat.stop_asked_at is not None:
                worker.stop()
            await worker.run()

    async def _produce(self, seat: Seat) -> None:
        stopped = anyio.Event()
        seat.stop = stopped.set
        async with seat.machine.app() as seat.app:
            if seat.stop_asked_at is None:
                await stopped.wait()
        seat.app = None

    def _stop(self, seat: Seat) -> None:
        seat.stop_asked_at = self._loop.time()
        seat.machine.main.post(seat.stop)

    async def _stop_all(self) -> None:
        seats = [seat for seat in (*self._workers, *self._producers) if seat.runs]
        for seat in seats:
            if seat.stop_asked_at is None:
                self._stop(seat)
                seat.task.add_done_callback(lambda _, seat=seat: self._note_stop(seat))
        if seats:
            await asyncio.wait([seat.task for seat in seats], timeout=RECOVERY_SECONDS)

    def _note_stop(self, seat: Seat) -> None:
        if seat.stop_asked_at is None:
            return
        took = self._loop.time() - seat.stop_asked_at
        self._entries.append(Stopped(self._loop.time(), seat.machine.name, took, SETTINGS.grace_period))

    # Asking

    def _ask(self, ask: Ask) -> None:
        seat = self._producers[ask.producer]
        if seat.app is not None and seat.machine.is_alive:
            self._asks.append(seat.machine.main.start(self._make(seat.app, seat.machine, ask)))

    async def _make(self, app: App, machine: Machine, ask: Ask) -> None:
        answer, job_id = await Producer(app, machine.clock.sleep, self._job_ids).make(ask)
        if ask.what not in ("cancel", "move"):
            self._entries.append(Asked(self._loop.time(), machine.name, ask.number, answer, job_id))

    # Failing

    def _fail(self, planned: PlannedFault) -> None:
        seats = [*self._workers, *self._producers]
        seat = seats[planned.target]
        target = "server" if planned.fault in ON_THE_SERVER else seat.machine.name
        self._entries.append(Failed(self._loop.time(), planned.fault.value, target, planned.seconds))
        _FAILURES[planned.fault](self, seat, planned)

    def _kill(self, seat: Seat, planned: PlannedFault) -> None:
        if seat.runs:
            seat.stop_asked_at = None
            seat.machine.kill()
            self._later(planned.seconds, lambda: self._start(seat))

    def _freeze(self, seat: Seat, planned: PlannedFault) -> None:
        process = seat.machine.process
        process.is_frozen = True
        self._later(planned.seconds, process.thaw)

    def _ask_to_stop(self, seat: Seat, planned: PlannedFault) -> None:
        if not seat.runs or seat.stop_asked_at is not None:
            return
        self._stop(seat)

        def follow(_: asyncio.Task[None]) -> None:
            self._note_stop(seat)
            self._later(planned.seconds, lambda: self._start(seat))

        seat.task.add_done_callback(follow, context=self._loop.main.context())

    def _cut(self, seat: Seat, planned: PlannedFault) -> None:
        link = seat.machine.link
        link.is_cut = True
        self._later(planned.seconds, link.heal)

    def _reset(self, seat: Seat, _: PlannedFault) -> None:
        seat.machine.link.reset()

    def _slow(self, seat: Seat, planned: PlannedFault) -> None:
        link = seat.machine.link
        link.slowness = float(planned.amount) * 5
        self._later(planned.seconds, lambda: setattr(link, "slowness", 1.0))

    def _refuse(self, seat: Seat, planned: PlannedFault) -> None:
        seat.machine.link.refusals += planned.amount

    def _lose(self, seat: Seat, planned: PlannedFault) -> None:
        seat.machine.link.losses += planned.amount

    def _deafen(self, seat: Seat, _: PlannedFault) -> None:
        for session in seat.machine.link.sessions:
            session.forget()

    def _restart(self, _: Seat, planned: PlannedFault) -> None:
        self._server.is_up = False
        for machine in self._machines:
            machine.link.reset()
        self._server.restart()
        self._later(planned.seconds, lambda: setattr(self._server, "is_up", True))

    def _set_clock(self, _: Seat, planned: PlannedFault) -> None:
        self._furthest = max(self._furthest, self._server.clock.ahead)
        self._server.clock.ahead += planned.seconds

    def _heal(self) -> None:
        self._healed_at = self._loop.time()
        self._server.is_up = True
        self._server.clock.ahead = max(self._furthest, self._server.clock.ahead)  # what was due then must come
        for machine in self._machines:
            machine.process.thaw()
            machine.link.refusals = machine.link.losses = 0
            machine.link.slowness = 1.0
            machine.link.heal()

    # Time

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        self._loop.call_later(seconds, action, context=self._loop.main.context())

    async def _until(self, at: float) -> None:
        await self._clock.sleep(max(0.0, at - self._loop.time()))

    def _is_settled(self) -> bool:
        all_are_there = all(seat.runs and seat.stop_asked_at is None for seat in (*self._workers, *self._producers))
        return all_are_there and set(self._server.states().values()) <= ENDED and not self._pending()

    def _pending(self) -> bool:
        living = {task for machine in self._machines if machine.is_alive for task in machine.main.tasks}
        return any(not ask.done() and ask in living for ask in self._asks)

    def _left_over(self) -> list[str]:
        broken = [task.exception() for task in self._asks if task.done() and not task.cancelled()]
        return [
            *self._amiss,
            *(f"a call failed: {error!r}" for error in broken if error is not None),
            *(
                f"{machine.name} still runs {getattr(task.get_coro(), '__qualname__', 'a task')}"
                for machine in self._machines
                if machine.is_alive
                for task in machine.tasks
                if not task.done()
            ),
        ]


_FAILURES: dict[Fault, Callable[[Play, Seat, PlannedFault], None]] = {
    Fault.KILL: Play._kill,
    Fault.FREEZE: Play._freeze,
    Fault.STOP: Play._ask_to_stop,
    Fault.CUT: Play._cut,
    Fault.RESET: Play._reset,
    Fault.SLOW: Play._slow,
    Fault.REFUSE: Play._refuse,
    Fault.LOSE: Play._lose,
    Fault.DEAFEN: Play._deafen,
    Fault.RESTART: Play._restart,
    Fault.SET_CLOCK: Play._set_clock,
}


def _settings(plan: WorkerPlan) -> WorkerSettings:
    return msgspec.structs.replace(SETTINGS, concurrency=plan.concurrency)


def _length(fault: PlannedFault) -> float:
    return 0.0 if fault.fault is Fault.SET_CLOCK else fault.seconds


async def _wait_for(tasks: Sequence[asyncio.Task[Any]]) -> None:
    await asyncio.wait(tasks, timeout=RECOVERY_SECONDS)
