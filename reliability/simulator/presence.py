"""How a simulated process beats, listens and notifies: the real heartbeat, listener and notifier on its link."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any, cast

import anyio

from eventflow.clock import Clock
from eventflow.errors import DatabaseError
from eventflow.ids import WorkerId
from eventflow.jobs import WorkerRecord
from eventflow.jobs.worker import Heartbeat, Lease, Wake
from eventflow.postgres.connection import Connection, Connector, Lane
from eventflow.postgres.listener import Listener
from eventflow.postgres.presence import CLOSE_SECONDS, FIRST_PROOF_SECONDS
from eventflow.postgres.statements import DEFAULT_SCHEMA, statement
from eventflow.supervision import Supervisor, background_tasks
from reliability.simulator.link import Link
from reliability.simulator.loop import Thread
from reliability.simulator.sessions import Session
from reliability.simulator.stores import LinkedJobStore, read

WAKE, PROVE = statement("wake_workers"), statement("prove_listening")
WAKE_US = 1000
"""So far apart are notifications at least, and further if many listen, as in the SQL."""


class LinkedLane:
    """The lane of a notifier or prover: it knows their statements."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def fetch(self, query: str, *arguments: Any) -> list[dict[str, Any]]:
        server = self._link.server

        async def answer() -> list[dict[str, Any]]:
            if query == PROVE:
                server.notify(*arguments)
                return []
            if query != WAKE:
                raise AssertionError(f"the simulator does not know {query}")
            server.notify(DEFAULT_SCHEMA, arguments[0])
            wait_us = max(WAKE_US, len(server.sessions) * 1_000_000 // 1500)
            return [{"is_done": True, "wait_us": wait_us, "now_us": await server.jobs.now_us()}]

        return await read(self._link, answer)


def lane_of(link: Link) -> Lane:
    """The same, as what the notifier and the listener take it for."""
    return cast("Lane", LinkedLane(link))


class SimulatedPresence:
    """
    Implements :class:`~eventflow.jobs.worker.Presence` as the one on Postgres does, in a thread of its own.

    Args:
        thread: Where it beats and listens.
        main: Where the worker is woken.
        joined: Told of each worker that registers.
    """

    def __init__(
        self,
        link: Link,
        store: LinkedJobStore,
        *,
        thread: Thread,
        main: Thread,
        clock: Clock,
        rng: Random,
        interval: float,
        joined: Callable[[WorkerId], None],
    ) -> None:
        self._link = link
        self._joined = joined
        self._store = store
        self._thread = thread
        self._main = main
        self._clock = clock
        self._rng = rng
        self._interval = interval

    @asynccontextmanager
    async def attend(self, worker: WorkerRecord, wake: Wake) -> AsyncGenerator[Lease]:
        self._joined(worker.id)
        attendance = _Attendance(self, worker, wake)
        async with background_tasks() as group:
            group.start_soon(attendance.join, self._thread.start(attendance.run()))
            try:
                await attendance.registered.wait()
                yield attendance.heartbeat
            finally:
                self._thread.post(attendance.scope.cancel)

    def listener(self, worker: WorkerRecord, wake: Wake) -> Listener:
        return Listener(
            cast("Connector", self._connect),
            lane_of(self._link),
            worker.id,
            DEFAULT_SCHEMA,
            wake=lambda payload: self._main.post(wake, payload),
            clock=self._clock,
        )

    async def _connect(self) -> Connection:
        session = Session(self._link)

        async def accept() -> None:
            self._link.server.sessions[session] = None

        await self._link.call(accept)
        self._link.sessions.append(session)
        return cast("Connection", session)


class _Attendance:
    def __init__(self, presence: SimulatedPresence, worker: WorkerRecord, wake: Wake) -> None:
        self._presence = presence
        self._worker = worker
        self.registered = anyio.Event()
        self.scope = anyio.CancelScope()
        self._listener = presence.listener(worker, wake)
        self.heartbeat = Heartbeat(
            lambda: presence._store.beat(worker.id, self._listener.session),
            clock=presence._clock,
            interval=presence._interval,
        )

    async def join(self, thread: asyncio.Task[None]) -> None:
        """Wait until it has ended, also when cancelled."""
        with anyio.CancelScope(shield=True):
            await thread

    async def run(self) -> None:
        presence = self._presence
        try:
            with self.scope:
                await presence._store.open_worker(self._worker)
                async with background_tasks() as group:
                    supervisor = Supervisor(presence._clock, presence._rng)
                    group.start_soon(supervisor.repeat, "beat", self.heartbeat.beat_step)
                    group.start_soon(supervisor.repeat, "listen", lambda: self._listener.listen_step(self.heartbeat))
                    with presence._clock.deadline(FIRST_PROOF_SECONDS):
                        await self._listener.tried.wait()
                    self.registered.set()
        finally:
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                with suppress(DatabaseError):
                    await presence._store.close_worker(self._worker.id)
