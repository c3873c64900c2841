"""
The demo's producer process: ``python -m eventflow.demo.producer JOBS SECONDS``.

A third of the commands is scheduled in bulk at the start, the others one by one while time goes on, also while
no worker is alive; every tenth of these for at once. All are due within SECONDS.
"""

import sys
from collections.abc import Sequence
from datetime import timedelta
from random import Random

import anyio

from eventflow import App, Clock, SystemClock
from eventflow.demo.flow import SendReminder, flow
from eventflow.demo.ledger import Ledger
from eventflow.supervision import background_tasks

BULK_SIZE = 20
"""Commands that are scheduled in one call, for one instant."""
AT_ONCE_EVERY = 10
SCHEDULING_SHARE = 0.7
"""Scheduling goes on for this part of the time, so for some time after the kill."""


class Producer:
    """
    Schedules the commands and notes each one that was acknowledged.

    Args:
        seconds: All commands are due within this time.
        rng: Chooses delays and how long handlers take.
    """

    def __init__(self, app: App, ledger: Ledger, *, seconds: float, clock: Clock, rng: Random) -> None:
        self._app = app
        self._ledger = ledger
        self._seconds = seconds
        self._clock = clock
        self._rng = rng

    async def produce(self, jobs: int) -> None:
        """Schedule so many commands."""
        commands = [SendReminder(number=n, takes_seconds=self._rng.uniform(0.03, 0.1)) for n in range(1, jobs + 1)]
        in_bulk = jobs // 3
        for start in range(0, in_bulk, BULK_SIZE):
            await self._schedule_together(commands[start : min(start + BULK_SIZE, in_bulk)])
        await self._schedule_singly(commands[in_bulk:])

    async def _schedule_together(self, commands: Sequence[SendReminder]) -> None:
        delay = timedelta(seconds=self._rng.uniform(0, self._seconds))
        job_ids = await self._app.commands.schedule_many(commands, delay=delay)
        await self._ledger.scheduled([command.source_id for command in commands], job_ids)

    async def _schedule_singly(self, commands: Sequence[SendReminder]) -> None:
        """Each at its moment, however long the one before takes."""
        began_at = self._clock.monotonic()
        pause = self._seconds * SCHEDULING_SHARE / max(1, len(commands))
        async with background_tasks() as group:
            for position, command in enumerate(commands):
                await self._clock.sleep(max(0.0, began_at + position * pause - self._clock.monotonic()))
                left = max(0.0, began_at + self._seconds - self._clock.monotonic())
                at_once = position % AT_ONCE_EVERY == 0
                group.start_soon(self._schedule, command, None if at_once else self._rng.uniform(0, left))

    async def _schedule(self, command: SendReminder, delay: float | None) -> None:
        job_id = await self._app.commands.schedule(command, delay=None if delay is None else timedelta(seconds=delay))
        await self._ledger.scheduled([command.source_id], [job_id])


async def produce(jobs: int, seconds: float) -> None:
    """Schedule *jobs* commands, unless the demo ends before."""
    async with background_tasks() as group, flow.open() as app, app.services.scope() as services:
        group.start_soon(_end_with_the_demo, group.cancel_scope)
        ledger = await services.aget(Ledger)
        await Producer(app, ledger, seconds=seconds, clock=SystemClock(), rng=Random()).produce(jobs)
        group.cancel_scope.cancel()


async def _end_with_the_demo(scope: anyio.CancelScope) -> None:
    await anyio.wait_readable(sys.stdin)
    scope.cancel()


if __name__ == "__main__":
    anyio.run(produce, int(sys.argv[1]), float(sys.argv[2]))
