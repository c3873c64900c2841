"""The lease of a worker: one for all its jobs, kept by a counter that grows."""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random
from typing import Protocol

import anyio

from eventflow.clock import Clock
from eventflow.errors import LeaseLostError
from eventflow.jobs.records import WorkerRecord
from eventflow.jobs.store import JobStore
from eventflow.supervision import Supervisor, background_tasks

log = logging.getLogger("eventflow.worker")

Wake = Callable[[str], None]
"""Takes the payload of a notification: ``""`` there may be jobs, ``"signal"`` somebody asks something."""


class Lease(Protocol):
    """
    What a worker knows of its own lease.

    Attributes:
        beaten_at: Monotonic seconds when the last successful beat was sent.
        closed: Somebody has taken the jobs.
        listening: Notifications arrive; otherwise the worker polls.
    """

    @property
    def beaten_at(self) -> float: ...
    @property
    def closed(self) -> bool: ...
    @property
    def listening(self) -> bool: ...


class Presence(Protocol):
    """Keeps a worker alive in the eyes of others, whatever its jobs do to the event loop."""

    def attend(self, worker: WorkerRecord, wake: Wake) -> AbstractAsyncContextManager[Lease]:
        """Register the worker, beat and listen while the context lasts, close the worker at its end."""
        ...


class Heartbeat:
    """
    Beats until cancelled or closed.

    Args:
        beat: Writes one beat; false: the worker has been closed.
        interval: Seconds between two.
    """

    def __init__(self, beat: Callable[[], Awaitable[bool]], *, clock: Clock, interval: float) -> None:
        self._beat = beat
        self._clock = clock
        self._interval = interval
        self.beaten_at = clock.monotonic()
        self.closed = False
        self.listening = True

    async def beat_now(self) -> None:
        """One beat. It counts from when it was sent: an answer that took long stretches no lease."""
        sent_at = self._clock.monotonic()
        if await self._beat():
            self.beaten_at = sent_at
        else:
            self.closed = True

    async def beat_step(self) -> None:
        """Beat once and wait for the next."""
        await self.beat_now()
        await self._clock.sleep(self._interval)


class LeaseGuard:
    """Ends a worker that cannot be sure of its lease any more, before another takes its jobs."""

    def __init__(self, lease: Lease, *, clock: Clock, fence_after: float) -> None:
        self._lease = lease
        self._clock = clock
        self._fence_after = fence_after

    async def guard_step(self) -> None:
        """
        Look once and wait a little.

        Raises:
            LeaseLostError: the worker was closed, or no beat succeeded for too long.
        """
        if self._lease.closed:
            raise LeaseLostError("another worker has taken the jobs")
        left = self._lease.beaten_at + self._fence_after - self._clock.monotonic()
        if left <= 0:
            raise LeaseLostError(f"no beat has succeeded for {self._fence_after:g} s")
        await self._clock.sleep(min(left, 0.25))


class InProcessPresence:
    """A presence within the worker's own event loop, for stores that need no connection."""

    def __init__(self, store: JobStore, *, clock: Clock, rng: Random, interval: float) -> None:
        self._store = store
        self._clock = clock
        self._rng = rng
        self._interval = interval

    @asynccontextmanager
    async def attend(self, worker: WorkerRecord, wake: Wake) -> AsyncGenerator[Lease]:
        await self._store.open_worker(worker)
        heartbeat = Heartbeat(lambda: self._store.beat(worker.id), clock=self._clock, interval=self._interval)
        async with background_tasks() as group:
            group.start_soon(Supervisor(self._clock, self._rng).repeat, "beat", heartbeat.beat_step)
            try:
                yield heartbeat
            finally:
                group.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await self._store.close_worker(worker.id)
