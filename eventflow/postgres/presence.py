"""Keeps a worker alive in the eyes of others: it beats and listens in a thread of its own."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from random import Random

import anyio
import anyio.to_thread

from eventflow.clock import Clock
from eventflow.errors import DatabaseError, DatabaseUnavailableError
from eventflow.jobs import WorkerRecord
from eventflow.jobs.worker import Heartbeat, Lease, Wake
from eventflow.postgres.connection import Connector, Lane
from eventflow.postgres.job_store import PostgresJobStore
from eventflow.postgres.listener import Listener
from eventflow.supervision import Supervisor, background_tasks

log = logging.getLogger("eventflow.postgres")

FIRST_PROOF_SECONDS = 0.5
"""A worker claims nothing before others can see its session, for at most so long: if it died before that, they would
only miss its beats. Behind a pooler there is nothing to see."""
CLOSE_SECONDS = 2.0
"""How long closing a worker may take; if it fails, others find it dead and do it."""
ANSWER_SECONDS = 0.5
"""How long a database that has been answering may take to answer before all that."""
DOUBTED_SECONDS = 0.2
"""The same for one that has not."""


class PostgresPresence:
    """
    A :class:`~eventflow.jobs.worker.Presence` on Postgres.

    Beats and LISTEN have an event loop of their own, in a thread, and a connection each: a handler that blocks the
    worker's loop for a while is not taken for dead, and a lost session is answered by a beat at once.

    Args:
        connect: Opens the connection for beats.
        connect_listener: Opens the one that listens; it should reach the server directly, not through a pooler.
        heartbeat_interval: Seconds between beats.
    """

    def __init__(
        self,
        connect: Connector,
        connect_listener: Connector,
        schema: str,
        *,
        heartbeat_interval: float,
        clock: Clock,
        rng: Random,
    ) -> None:
        self.connect = connect
        self.connect_listener = connect_listener
        self.schema = schema
        self.heartbeat_interval = heartbeat_interval
        self.clock = clock
        self.rng = rng

    @asynccontextmanager
    async def attend(self, worker: WorkerRecord, wake: Wake) -> AsyncGenerator[Lease]:
        thread = _PresenceThread(self, worker, wake)
        async with background_tasks() as group:
            group.start_soon(thread.run)
            try:
                yield await thread.ready()
            finally:
                thread.stop()  # it closes the worker; the group waits for it


class _PresenceThread:
    def __init__(self, presence: PostgresPresence, worker: WorkerRecord, wake: Wake) -> None:
        self._presence = presence
        self._worker = worker
        self._wake = wake
        self._main_loop = asyncio.get_running_loop()
        self._registered = anyio.Event()
        self._heartbeat: Heartbeat  # made in the thread, before it is registered
        self._stop_thread: Callable[[], object] | None = None
        self._stopping = False

    async def run(self) -> None:
        """In the worker's loop: run the thread until it has been stopped."""
        await anyio.to_thread.run_sync(
            anyio.run, self._attend, limiter=anyio.CapacityLimiter(1), abandon_on_cancel=False
        )

    async def ready(self) -> Lease:
        """In the worker's loop: wait until the worker is registered, and can be seen to be there."""
        await self._registered.wait()
        return self._heartbeat

    def stop(self) -> None:
        """In the worker's loop: let the thread end."""
        self._stopping = True
        if self._stop_thread is not None:
            with suppress(RuntimeError):  # the thread has just ended by itself
                self._stop_thread()

    async def _attend(self) -> None:
        presence = self._presence
        loop, scope = asyncio.get_running_loop(), anyio.CancelScope()
        self._stop_thread = lambda: loop.call_soon_threadsafe(scope.cancel)
        if self._stopping:  # before this thread could be told
            return
        beating = Lane(presence.connect, presence.schema)
        listener = Listener(
            presence.connect_listener,
            beating,
            self._worker.id,
            presence.schema,
            wake=lambda payload: self._in_main_loop(self._wake, payload),
            clock=presence.clock,
        )
        store = PostgresJobStore(presence.connect, presence.schema, watching=beating)
        heartbeat = self._heartbeat = Heartbeat(
            lambda: store.beat(self._worker.id, listener.session),
            clock=presence.clock,
            interval=presence.heartbeat_interval,
        )
        opened = False
        try:
            with scope:
                opened = True  # or will be: whoever is cancelled here does not know
                await store.open_worker(self._worker)
                async with background_tasks() as group:
                    supervisor = Supervisor(presence.clock, presence.rng)
                    group.start_soon(supervisor.repeat, "beat", heartbeat.beat_step)
                    group.start_soon(supervisor.repeat, "listen", lambda: listener.listen_step(heartbeat))
                    with presence.clock.deadline(FIRST_PROOF_SECONDS):
                        await listener.tried.wait()
                    self._in_main_loop(self._registered.set)
        finally:
            self._stop_thread = None
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                if opened:
                    await self._close(store, beating)
                await store.close()

    async def _close(self, store: PostgresJobStore, beating: Lane) -> None:
        try:
            if not await beating.answers(DOUBTED_SECONDS if self._presence.connect.silent else ANSWER_SECONDS):
                raise DatabaseUnavailableError("it does not answer")
            await store.close_worker(self._worker.id)
        except DatabaseError as exc:
            log.warning("worker.not_closed", extra={"worker_id": self._worker.id, "error": str(exc)})

    def _in_main_loop(self, function: Callable[..., object], *arguments: object) -> None:
        if not self._main_loop.is_closed():
            self._main_loop.call_soon_threadsafe(function, *arguments)
