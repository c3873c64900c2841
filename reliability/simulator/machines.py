"""Simulated processes: the real application, and a worker or producers in it."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import anyio
import anyio.lowlevel

from eventflow import App, CommandContext, JobContext, Services, WorkerId
from eventflow.application.app import compose
from eventflow.application.backends import Backend
from eventflow.clock import to_microseconds
from eventflow.jobs import JobEncoder, StoreJobScheduler
from eventflow.postgres.notifier import Notifier
from eventflow.postgres.statements import DEFAULT_SCHEMA
from eventflow.postgres.wakes import Wakes
from eventflow.supervision import Supervisor, background_tasks
from reliability.faults import Fault
from reliability.history import AnyEntry, Began, Ended, Failed, Joined, Saw
from reliability.simulator.clocks import SimulatedClock
from reliability.simulator.link import Link
from reliability.simulator.loop import Process, SimulatedLoop
from reliability.simulator.presence import SimulatedPresence, lane_of
from reliability.simulator.server import Server
from reliability.simulator.stores import LinkedCommits, LinkedEventStore, LinkedJobStore
from reliability.workload import Effects, flow_of


class Machine:
    """
    A process with a clock and a network of its own, in which the application is open.

    Args:
        died: Called when one of its jobs has killed it.

    Attributes:
        link: Its network.
        clock: Its clock.
        process: What can be frozen and killed.
        is_alive: It was not killed.
    """

    def __init__(
        self,
        name: str,
        loop: SimulatedLoop,
        server: Server,
        note: Callable[[AnyEntry], None],
        rng: Random,
        *,
        rate: float = 1.0,
        ahead: float = 0.0,
        is_new: bool = True,
        died: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.died = died
        self.process = Process(loop, name)
        self.is_alive = True
        self.main, self._listening = self.process.thread(), self.process.thread()
        self.clock = SimulatedClock(loop, rate=rate, ahead=ahead)
        self.link = Link(loop, server, self._listening.context(), rng)
        self._loop = loop
        self._server = server
        self._note = note
        self._rng = rng
        self._is_new = is_new

    def kill(self) -> None:
        """End it as SIGKILL does; the kernel closes its sockets."""
        self.is_alive = False
        self.process.kill()
        for session in self.link.sessions:
            self.link.there(session.end)

    @property
    def listens(self) -> bool:
        """Notifications reach it."""
        return any(session.listens for session in self.link.sessions)

    @property
    def tasks(self) -> list[asyncio.Task[Any]]:
        """All that were ever started in it."""
        return [task for thread in self.process.threads for task in thread.tasks]

    def revive(self) -> None:
        """Let what was killed be cancelled, once nobody looks any more; it counts as killed all the same."""
        self.process.is_killed = False
        self.process.thaw()
        for thread in self.process.threads:
            thread.is_blocked = False
            self._loop.make_runnable(thread)

    @asynccontextmanager
    async def app(self) -> AsyncGenerator[App]:
        """The application, opened in this process."""
        notifier = Notifier(lane_of(self.link), DEFAULT_SCHEMA, self.clock)
        wakes = Wakes(notifier)
        store, events, commits = (
            LinkedJobStore(self.link, wakes),
            LinkedEventStore(self.link),
            LinkedCommits(self.link, wakes),
        )
        model = flow_of(self._lifespan, is_new=self._is_new).check()
        encoder = JobEncoder(model.definitions)
        backend = Backend(
            events,
            commits,
            lambda _runner, _interest: StoreJobScheduler(store, encoder),
            store=store,
            presence=lambda interval: SimulatedPresence(
                self.link,
                store,
                thread=self._listening,
                main=self.main,
                clock=self.clock,
                rng=self._rng,
                interval=interval,
                joined=self._joined,
            ),
            on_wake=wakes.on_wake,
        )
        async with background_tasks() as group:
            group.start_soon(Supervisor(self.clock, self._rng).repeat, "notify", notifier.notify_step)
            async with compose(
                model, [self._lifespan], backend, encoder=encoder, clock=self.clock, rng=self._rng
            ) as app:
                yield app
            group.cancel_scope.cancel()

    def _joined(self, worker_id: WorkerId) -> None:
        self._note(Joined(self._loop.time(), self.name, worker_id))

    @asynccontextmanager
    async def _lifespan(self, services: Services) -> AsyncGenerator[None]:
        services.register_value(Effects, _Effects(self, self._loop, self._server, self._note))
        yield


class _Effects:
    def __init__(self, machine: Machine, loop: SimulatedLoop, server: Server, note: Callable[[AnyEntry], None]) -> None:
        self._machine = machine
        self._loop = loop
        self._server = server
        self._note = note

    async def began(self, number: int, context: JobContext | CommandContext) -> None:
        attempt, due_us = 0, 0
        if isinstance(context, JobContext):
            attempt, due_us = context.attempt, to_microseconds(context.due_at)
        now, store_us = self._loop.time(), to_microseconds(self._server.clock.now())
        self._note(Began(now, self._machine.name, number, attempt, store_us, due_us))

    async def ended(self, number: int, context: JobContext | CommandContext) -> None:
        self._note(Ended(self._loop.time(), self._machine.name, number))

    async def saw(self, account_id: str, stream_version: int) -> None:
        self._note(Saw(self._loop.time(), self._machine.name, account_id, stream_version))

    async def nap(self, seconds: float) -> None:
        await self._machine.clock.sleep(seconds)

    async def block(self, seconds: float) -> None:
        self._note(Failed(self._loop.time(), Fault.BLOCK.value, self._machine.name, seconds))
        self._machine.main.block(seconds)
        await anyio.lowlevel.checkpoint()

    async def die(self) -> None:
        self._note(Failed(self._loop.time(), Fault.KILL.value, self._machine.name))
        self._machine.kill()
        self._machine.died()
        await anyio.sleep_forever()
