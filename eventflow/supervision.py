"""Keeps services running: one place that logs a failed step, backs off and tries again."""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random

import anyio
from anyio.abc import TaskGroup

from eventflow.clock import Clock

log = logging.getLogger("eventflow.supervision")

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0
"""A database that is back is found again within this and one connection attempt."""
SETTLED_SECONDS = 30.0
"""A step that failed after so long had been working; no attempt takes as long."""


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
                await self._clock.sleep(self._pause(failures))
            else:
                if failures:
                    log.info("service.recovered", extra={"service": name, "failures": failures})
                failures = 0

    def _pause(self, failures: int) -> float:
        longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 30))
        return longest * self._rng.uniform(0.5, 1.0)


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
