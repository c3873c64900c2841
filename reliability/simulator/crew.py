"""Who works and who asks: processes that start, die and stop, and the seats in which others follow them."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from random import Random
from typing import Any

import anyio
import msgspec

from eventflow import App
from eventflow.jobs.worker import Worker
from reliability.history import AnyEntry, Stopped
from reliability.scenario import RECOVERY_SECONDS, SETTINGS, Scenario, WorkerPlan
from reliability.simulator.loop import DeadlockError, SimulatedLoop
from reliability.simulator.machines import Machine
from reliability.simulator.server import Server

STARTS_AGAIN = 0.5
"""Seconds after which a process that its own job has killed is started again."""


Doing = Callable[["Member"], Coroutine[Any, Any, None]]


class Member:
    """
    A worker or a producer: one process, from its start to its end.

    Args:
        does: What it is there for.

    Attributes:
        machine: Where it runs.
        plan: What it is like.
        task: In which it does that.
        stop: Asks it to stop, in its own thread.
        stop_asked_at: When somebody has.
        app: Where it makes calls, if it is a producer that is ready.
        worker: If it is one that is ready.
    """

    def __init__(self, machine: Machine, plan: WorkerPlan, does: Doing) -> None:
        self.machine = machine
        self.plan = plan
        self.stop: Callable[[], None] = lambda: None
        self.stop_asked_at: float | None = None
        self.app: App | None = None
        self.worker: Worker | None = None
        self.task = machine.main.start(does(self))

    @property
    def name(self) -> str:
        """Of its process."""
        return self.machine.name

    @property
    def runs(self) -> bool:
        """It was not killed, and has not ended."""
        return self.machine.is_alive and not self.task.done()

    @property
    def stays(self) -> bool:
        """It runs, and nobody has asked it to stop."""
        return self.runs and self.stop_asked_at is None

    @property
    def free_slots(self) -> int:
        """Those of its worker, if it has its lease."""
        incarnation = None if self.worker is None else self.worker._incarnation
        return -1 if incarnation is None else incarnation._slots.free

    @property
    def wrong_end(self) -> str | None:
        """How it has ended, if it was neither killed nor stopped in good order."""
        if not self.machine.is_alive or not self.task.done():
            return None
        error = asyncio.CancelledError() if self.task.cancelled() else self.task.exception()
        if error is not None:
            return f"{self.name} has ended: {error!r}"
        return f"{self.name} has ended, and nobody has asked it to stop" if self.stop_asked_at is None else None


class Seat:
    """
    Where a worker or a producer runs; when it has ended, another one.

    Attributes:
        member: The last that was started.
    """

    def __init__(self, name: str, plan: WorkerPlan, does: Doing) -> None:
        self.name = name
        self.plan = plan
        self.does = does
        self.generation = 0
        self.member: Member


class Crew:
    """
    All processes of a run.

    Args:
        note: Takes what happens.

    Attributes:
        members: All that were ever started.
        is_over: Nobody is started any more.
    """

    def __init__(
        self, scenario: Scenario, loop: SimulatedLoop, server: Server, note: Callable[[AnyEntry], None], rng: Random
    ) -> None:
        self._loop = loop
        self._server = server
        self._note = note
        self._rng = rng
        self.workers = [Seat(f"worker-{number}", plan, _work) for number, plan in enumerate(scenario.workers)]
        self.producers = [Seat(f"producer-{number}", WorkerPlan(), _produce) for number in range(scenario.producers)]
        self.members: list[Member] = []
        self.is_over = False

    @property
    def seats(self) -> list[Seat]:
        """In the order in which faults count them."""
        return [*self.workers, *self.producers]

    def start(self, seat: Seat) -> None:
        """Start the next process of a seat, unless all is over."""
        if self.is_over:
            return
        seat.generation += 1
        machine = Machine(
            f"{seat.name}.{seat.generation}",
            self._loop,
            self._server,
            self._note,
            self._rng,
            rate=seat.plan.rate,
            ahead=seat.plan.ahead,
            is_new=seat.plan.is_new,
            died=lambda: self._start_later(seat, STARTS_AGAIN),
        )
        seat.member = Member(machine, seat.plan, seat.does)
        self.members.append(seat.member)

    def kill(self, seat: Seat, seconds: float) -> None:
        """Kill what runs there, and start another one so much later."""
        if seat.member.runs:
            seat.member.machine.kill()
            self._start_later(seat, seconds)

    def replace(self, seat: Seat, seconds: float) -> None:
        """Ask what runs there to stop; start another one so long after it has."""
        if seat.member.stays:
            self._stop(seat.member, lambda: self._start_later(seat, seconds))

    async def stop_all(self) -> None:
        """Ask everybody to stop, and wait for it."""
        running = [seat.member for seat in self.seats if seat.member.runs]
        for member in running:
            if member.stays:
                self._stop(member)
        await _ended([member.task for member in running])

    def bury(self) -> None:
        """Let go of everything that was killed."""
        self.is_over = True
        machines = [member.machine for member in self.members]
        for machine in machines:
            machine.link.is_closed = True
            machine.revive()
        tasks = [task for machine in machines for task in machine.tasks if not task.done()]
        for task in tasks:
            task.cancel()
        with suppress(DeadlockError):
            self._loop.run(_ended(tasks))

    def _start_later(self, seat: Seat, seconds: float) -> None:
        self._loop.main.later(seconds, lambda: self.start(seat))

    def _stop(self, member: Member, then: Callable[[], None] = lambda: None) -> None:
        asked_at = member.stop_asked_at = self._loop.time()
        member.machine.main.post(member.stop)

        def follow(_: asyncio.Task[None]) -> None:
            if member.machine.is_alive:  # otherwise it was killed meanwhile, and ends in its grave
                now = self._loop.time()
                self._note(Stopped(now, member.name, now - asked_at, SETTINGS.grace_period))
                then()

        member.task.add_done_callback(follow, context=self._loop.main.context())


async def _work(member: Member) -> None:
    settings = msgspec.structs.replace(SETTINGS, concurrency=member.plan.concurrency)
    async with member.machine.app() as app:
        member.worker = app.create_worker(settings)
        member.stop = member.worker.stop
        if member.stop_asked_at is not None:
            member.stop()
        await member.worker.run()


async def _produce(member: Member) -> None:
    stopped = anyio.Event()
    member.stop = stopped.set
    async with member.machine.app() as member.app:
        if member.stop_asked_at is None:
            await stopped.wait()
    member.app = None


async def _ended(tasks: Sequence[asyncio.Task[Any]]) -> None:
    if tasks:
        await asyncio.wait(tasks, timeout=RECOVERY_SECONDS)
