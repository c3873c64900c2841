"""What fails is tried again: the steps of services for ever, reads of jobs for a while; one place that backs off."""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup

from eventflow.clock import Clock
from eventflow.errors import DatabaseUnavailableError

T = TypeVar("T")

log = logging.getLogger("eventflow.supervision")

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0
"""A database that is back is found again within this and one connection attempt."""
SETTLED_SECONDS = 30.0
"""A step that failed after so long had been working; no attempt takes as long."""
PATIENCE_SECONDS = 30.0
"""A read that fails for longer fails its job, which must not keep a slot for ever."""
SLOW_SECONDS = 4.0
"""A read that was given up only after so long is repeated once: one that takes more than a statement's time must not
keep a connection from others."""


def pause_after(failures: int, rng: Random) -> float:
    """Seconds to wait after so many failures in a row, counted from 1."""
    longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 30))
    return longest * rng.uniform(0.5, 1.0)


class Supervisor:
    """
    Repeats the steps of services until cancelled.

    Args:
        clock: What pauses are measured with.
        rng: Source of the jitter.
        fatal: Errors that end the service instead of being retried, such as a lost lease.
    """

    def __init__(self, clock: Clock, rng: Random, *, fatal: tuple[type[Exception], ...] = ()) -> None:
        self._clock = clock
        self._rng = rng
        self._fatal = fatal

    async def repeat(self, name: str, step: Callable[[], Awaitable[None]]) -> None:
        """
        Call *step* for ever; a step waits for its own work and has no ``except Exception``.

        An outage is logged once, at its first failure, and once when it is over.
        """
        failures = 0
        while True:
            began_at = self._clock.monotonic()
            try:
                await step()
            except self._fatal:
                raise
            except Exception as exc:
                if self._clock.monotonic() - began_at >= SETTLED_SECONDS:
                    failures = 0  # it had worked, as one that listens does until it fails: another outage
                if failures == 0:
                    log.warning("service.failed", extra={"service": name, "error": repr(exc)}, exc_info=exc)
                failures += 1
                await self._clock.sleep(pause_after(failures, self._rng))
            else:
                if failures:
                    log.info("service.recovered", extra={"service": name, "failures": failures})
                failures = 0


class Patience:
    """
    Repeats what jobs read while the database is away.

    Args:
        clock: Measures it.
        rng: Source of the jitter.
    """

    def __init__(self, clock: Clock, rng: Random) -> None:
        self._clock = clock
        self._rng = rng

    async def read(self, about: object, read: Callable[[], Awaitable[T]]) -> T:
        """
        Read, again if need be.

        Args:
            about: What is read, for the log.
            read: Changes nothing, and is no part of a transaction.

        Raises:
            DatabaseUnavailableError: it was away for too long, or two reads were slow.
        """
        began_at, failures, was_slow = self._clock.monotonic(), 0, False
        while True:
            asked_at = self._clock.monotonic()
            try:
                return await read()
            except DatabaseUnavailableError as exc:
                now = self._clock.monotonic()
                is_slow = now >= asked_at + SLOW_SECONDS
                if now >= began_at + PATIENCE_SECONDS or (is_slow and was_slow):
                    raise
                if not failures:
                    log.warning("read.waits", extra={"read": str(about), "error": str(exc)})
                failures, was_slow = failures + 1, was_slow or is_slow
            await self._clock.sleep(pause_after(failures, self._rng))


@asynccontextmanager
async def background_tasks() -> AsyncGenerator[TaskGroup]:
    """
    A task group whose one error is raised as itself.

    Who writes ``async with flow.open()`` expects the exception of the body, not a group with it inside. A group of
    the body's own stays what it is.
    """
    try:
        async with anyio.create_task_group() as group:
            yield group
    except BaseExceptionGroup as errors:
        lone, *others = errors.exceptions
        if others:
            raise
        raise lone from lone.__cause__
