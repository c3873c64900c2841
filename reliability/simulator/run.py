"""Plays a scenario, and says what was wrong."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from eventflow import App, JobId, JobRecord, ids
from eventflow.eventstore import StreamId
from eventflow.postgres.listener import PROOF_INTERVAL, PROOF_SECONDS
from eventflow.supervision import LONGEST_PAUSE_SECONDS
from reliability.asking import Producer, account_id
from reliability.checker import ENDED, Violation, check
from reliability.history import PROBE, AnyEntry, Asked, Evidence
from reliability.scenario import LATE_SECONDS, RECOVERY_SECONDS, Ask, Scenario
from reliability.simulator.clocks import SimulatedClock
from reliability.simulator.crew import Crew, Member
from reliability.simulator.failing import Failing
from reliability.simulator.loop import DeadlockError, SimulatedLoop
from reliability.simulator.server import Call, Server

LOOK_SECONDS = 0.25
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
        evidence = played.play()
        return Result(check(evidence), evidence, tuple(server.calls or ()), server.records() if with_calls else ())
    finally:
        ids.new_uuid = new_uuid
        played.crew.bury()
        asyncio.set_event_loop(None)
        loop.close()


def _uuids(loop: SimulatedLoop) -> Callable[[], str]:
    """UUIDv7s of the simulated time."""
    numbers = itertools.count(1)

    def new() -> str:
        milliseconds = int(loop.time() * 1000) + 1_893_456_000_000
        return f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}-7000-8000-{next(numbers):012x}"

    return new


class Asking(NamedTuple):
    """A call, and who makes it."""

    ask: Ask
    by: Member
    task: asyncio.Task[None]

    @property
    def is_under_way(self) -> bool:
        """It has not ended, and nobody has killed who makes it."""
        return self.by.machine.is_alive and not self.task.done()

    @property
    def error(self) -> BaseException | None:
        """What it has failed with."""
        return self.task.exception() if self.task.done() and not self.task.cancelled() else None


class Play:
    """A run of a scenario, and its crew, to be buried in the end."""

    def __init__(self, scenario: Scenario, loop: SimulatedLoop, server: Server, rng: Random) -> None:
        self._scenario = scenario
        self._loop = loop
        self._clock = SimulatedClock(loop)
        self._entries: list[AnyEntry] = []
        self._server = server
        server.note = self._entries.append
        self.crew = Crew(scenario, loop, server, self._entries.append, rng)
        self._failing = Failing(self.crew, loop, server, self._entries.append)
        self._askings: list[Asking] = []
        self._job_ids: dict[int, JobId] = {}
        self._amiss: list[str] = []
        self._is_probed = False
        self._healed_at = 0.0
        self._ended_at: float | None = None

    def play(self) -> Evidence:
        """Have it happen; what can be said at its end."""
        try:
            self._loop.run(self._run())
        except DeadlockError as exc:
            return self._evidence([f"the simulation stands still: {exc}", *self._wrong()])
        return self._evidence([*self._wrong(), *self._still_there()])

    async def _run(self) -> None:
        for seat in self.crew.seats:
            self.crew.start(seat)
        await self._take_steps()
        self._failing.heal()
        self._healed_at = self._loop.time()
        await self._settle()
        self._ended_at = self._loop.time()
        self.crew.is_over = True
        if self._scenario.seed % PROBED == 0:
            await self._probe()
        await self.crew.stop_all()

    async def _take_steps(self) -> None:
        asks, faults = self._scenario.asks, self._scenario.faults
        steps: list[tuple[float, Callable[[], None]]] = [
            *((ask.at, lambda ask=ask: self._ask(ask)) for ask in asks),
            *((fault.at, lambda fault=fault: self._failing.fail(fault)) for fault in faults),
        ]
        for at, step in sorted(steps, key=lambda step: step[0]):
            await self._until(at)
            step()
        await self._until(max((fault.over_at for fault in faults), default=0.0))

    async def _until(self, at: float) -> None:
        await self._clock.sleep(max(0.0, at - self._loop.time()))

    def _ask(self, ask: Ask) -> None:
        by = self.crew.producers[ask.producer].member
        if by.app is not None and by.runs:
            self._askings.append(Asking(ask, by, by.machine.main.start(self._make(ask, by, by.app))))

    async def _make(self, ask: Ask, by: Member, app: App) -> None:
        answer, job_id = await Producer(app, by.machine.clock.sleep, self._job_ids).make(ask)
        if ask.what not in ("cancel", "move"):
            self._entries.append(Asked(self._loop.time(), by.name, ask.number, answer, job_id))

    async def _settle(self) -> None:
        """Wait until everybody is there and everything has ended, or should have."""
        await self._clock.sleep(LATE_SECONDS)
        while not self._is_settled() and self._loop.time() < self._healed_at + RECOVERY_SECONDS:
            await self._clock.sleep(LOOK_SECONDS)
        took = self._loop.time() - self._healed_at
        self._amiss += (f"{what} {took:.1f} s after the last fault" for what in self._unsettled())

    def _is_settled(self) -> bool:
        return not self._unsettled() and set(self._server.states().values()) <= ENDED

    def _unsettled(self) -> list[str]:
        """Who is not there, and which calls are under way; the checker looks at the jobs."""
        under_way = [asking for asking in self._askings if asking.is_under_way]
        return [
            *(f"{seat.name} is not there" for seat in self.crew.seats if not seat.member.stays),
            *(f"call {asking.ask.number} of {asking.by.name} is under way" for asking in under_way),
        ]

    async def _probe(self) -> None:
        """Schedule a job once everybody listens again, and has all slots."""
        self._is_probed = True
        await self._clock.sleep(PROOF_INTERVAL + PROOF_SECONDS + LONGEST_PAUSE_SECONDS)
        for member in (seat.member for seat in self.crew.workers if seat.member.stays):
            if not member.machine.listens:
                self._amiss.append(f"{member.name} does not listen")
            if member.free_slots != member.plan.concurrency:
                self._amiss.append(f"{member.name} has {member.free_slots} of {member.plan.concurrency} slots")
        self._ask(Ask(at=self._loop.time(), producer=0, number=PROBE, what="work"))
        await self._clock.sleep(LONGEST_PROBE_SECONDS)

    def _wrong(self) -> list[str]:
        ends = [member.wrong_end for member in self.crew.members]
        return [
            *(end for end in ends if end is not None),
            *self._amiss,
            *(f"a call failed: {asking.error!r}" for asking in self._askings if asking.error is not None),
        ]

    def _still_there(self) -> list[str]:
        return [
            f"{member.name} still runs {getattr(task.get_coro(), '__qualname__', 'a task')}"
            for member in self.crew.members
            if member.machine.is_alive
            for task in member.machine.tasks
            if not task.done()
        ]

    def _evidence(self, left_over: list[str]) -> Evidence:
        scenario = self._scenario
        return Evidence(
            tuple(self._entries),
            self._server.deposits([StreamId("Account", account_id(account)) for account in scenario.accounts]),
            self._healed_at,
            self._loop.time() if self._ended_at is None else self._ended_at,
            clock_was_set=scenario.sets_the_clock,
            doomed=scenario.doomed,
            cancelled=scenario.cancelled,
            children=scenario.children,
            is_probed=self._is_probed,
            left_over=left_over,
        )
