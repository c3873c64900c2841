"""Who works in a schedule: processes, and others in their place when they have ended."""

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from signal import SIGCONT, SIGKILL, SIGTERM

import anyio

from reliability.faults import Fault
from reliability.history import AnyEntry, Asked, Failed, Stopped, read_lines
from reliability.rig.processes import RealProcess
from reliability.rig.world import World, until
from reliability.scenario import RECOVERY_SECONDS, SETTINGS, Ask, Scenario

START_SECONDS = 20.0
STARTED = {True: "\nready\n", False: "worker.started"}
"""What processes say in their logs, producers and workers."""
PAUSE_SECONDS = 0.3
"""Until another process takes the place of one that has ended."""


class Seat:
    """
    Where a process runs; when it has ended, another one.

    Attributes:
        dies_at: The point of the code at which the first process ends; ``""``: there is none.
        process: The one that runs, or has ended.
    """

    def __init__(self, name: str, dies_at: str, start: Callable[[str, str], Awaitable[RealProcess]]) -> None:
        self.name = name
        self.dies_at = dies_at
        self.start = start
        self.generation = 0
        self.process: RealProcess


class Crew:
    """
    All workers and producers.

    Attributes:
        workers: In the order of the scenario.
        producers: Likewise.
        entries: What was seen of them.
        amiss: What should not have been.
        processes: All that there ever were, by their ids.
    """

    def __init__(self, scenario: Scenario, world: World) -> None:
        self._world = world
        ends = {fault.target: fault.where for fault in scenario.faults if fault.fault is Fault.CRASH}
        self.workers = [
            Seat(f"worker-{number}", ends.get(number, ""), partial(world.start_worker, plan))
            for number, plan in enumerate(scenario.workers)
        ]
        self.producers = [
            Seat(f"producer-{number}", ends.get(len(self.workers) + number, ""), world.start_producer)
            for number in range(scenario.producers)
        ]
        self.entries: list[AnyEntry] = []
        self.amiss: list[str] = []
        self.processes: dict[int, RealProcess] = {}
        self._is_over = False

    @property
    def seats(self) -> list[Seat]:
        """First workers, then producers."""
        return [*self.workers, *self.producers]

    async def start(self) -> None:
        """Start everybody, and wait until they are there."""
        for seat in self.seats:
            await self._start(seat)
        if not await until(lambda: all(self._is_there(seat.process) for seat in self.seats), START_SECONDS):
            raise RuntimeError("\n".join(self.log(seat.process)[-1000:] for seat in self.seats))

    def ask(self, ask: Ask) -> None:
        """Have a producer make a call, if it is there."""
        with suppress(BrokenPipeError):
            self.producers[ask.producer].process.ask(ask)

    def waits_for(self) -> list[str]:
        """Who is not there, and which calls have not been answered."""
        away = [f"{s.name} is away" for s in self.seats if not s.process.runs or s.process.stop_asked_at is not None]
        pending = {seat.name: self._pending(seat.process) for seat in self.producers}
        return away + [f"{name} waits for {sorted(numbers)}" for name, numbers in pending.items() if numbers]

    def close(self) -> None:
        """Nobody takes the place of those that end from now on."""
        self._is_over = True

    async def stop(self) -> None:
        """Ask everybody to end, and wait until they have."""
        self.close()
        processes = [seat.process for seat in self.seats if seat.process.runs]
        for process in processes:
            if process.stop_asked_at is None:
                process.stop()
        if await until(lambda: not any(process.runs for process in processes), RECOVERY_SECONDS):
            await anyio.sleep(0.05)  # for those who watch
        self.amiss += [f"{process.name} does not stop" for process in processes if process.runs]

    def kill(self) -> None:
        """Whatever happened, nobody stays."""
        self.close()
        for process in self.processes.values():
            process.send(SIGCONT)
            process.kill()

    async def _start(self, seat: Seat) -> None:
        if self._is_over:
            return
        seat.generation += 1
        failpoints, seat.dies_at = seat.dies_at, ""
        seat.process = await seat.start(f"{seat.name}.{seat.generation}", failpoints)
        seat.process.dies_at = failpoints
        self.processes[seat.process.pid] = seat.process
        self._world.group.start_soon(self._watch, seat, seat.process)

    async def _watch(self, seat: Seat, process: RealProcess) -> None:
        """Start another when it has ended, whyever."""
        code = await process.ended()
        now = time.monotonic()
        if process.dies_at and code == -SIGKILL:
            self.entries.append(Failed(process.started_at, Fault.CRASH.value, process.name, now - process.started_at))
        if process.stop_asked_at is not None and code != -SIGKILL:
            self.entries.append(Stopped(now, process.name, now - process.stop_asked_at, SETTINGS.grace_period))
        if code != -SIGKILL and not (process.stop_asked_at is not None and self._may_end_with(code, process)):
            self.amiss.append(f"{process.name} has ended with {code}")
        await anyio.sleep(PAUSE_SECONDS)
        await self._start(seat)

    def _may_end_with(self, code: int, process: RealProcess) -> bool:
        """A process that was asked to stop; before Python has started there is nobody who takes the signal."""
        return code == 0 or (code == -SIGTERM and not self._is_there(process))

    def _is_there(self, process: RealProcess) -> bool:
        return STARTED[process.is_producer] in "\n" + self.log(process)

    def log(self, process: RealProcess) -> str:
        """What a process has logged."""
        return (self._world.directory / f"{process.name}.log").read_text()

    def _pending(self, process: RealProcess) -> set[int]:
        diary = self._world.directory / f"{process.name}.jsonl"
        entries = read_lines(diary) if diary.exists() else []
        return process.asked - {entry.number for entry in entries if isinstance(entry, Asked)}
