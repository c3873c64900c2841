"""Eventflow with jobs that take their time."""

import asyncio
import time
from random import Random

from benchmarks.contestants.ours import Tick, Way
from eventflow import JobContext, WorkerSettings

NAP_SECONDS = 0.01
NAPS_AT_ONCE = 1000
SHORTEST_SECONDS, LONGEST_SECONDS = 0.001, 1.0
LONG_SECONDS = 30.0
LONG = 1_000_000
"""Jobs with numbers from here on take long."""


def seconds_of(number: int) -> float:
    """How long a job of mixed durations takes: each order of magnitude from 1 ms to 1 s as often, or 30 s."""
    if number >= LONG:
        return LONG_SECONDS
    return SHORTEST_SECONDS * (LONGEST_SECONDS / SHORTEST_SECONDS) ** Random(number).random()


class Nap(Tick):
    """Sleeps for 10 ms."""

    async def execute(self, context: JobContext) -> None:
        type(self).started(self.number)
        await asyncio.sleep(NAP_SECONDS)


class Lasting(Tick):
    """Its number tells how long it takes."""

    async def execute(self, context: JobContext) -> None:
        type(self).started(self.number)
        await asyncio.sleep(seconds_of(self.number))


class Naps(Way):
    """A thousand short sleeps at once."""

    job = Nap
    settings = WorkerSettings(concurrency=NAPS_AT_ONCE)


class Durations(Way):
    """Durations from 1 ms to 30 s; what still runs when the worker stops is cut short."""

    job = Lasting
    settings = WorkerSettings(grace_period=0.0)


async def plain_naps(address: str, *, count: int) -> dict[str, float]:
    """The same sleeps, as many at once, by tasks that do nothing else: the limit of the event loop."""
    numbers = iter(range(count))

    async def sleep() -> None:
        for _ in numbers:
            await asyncio.sleep(NAP_SECONDS)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(NAPS_AT_ONCE):
            group.create_task(sleep())
    return {"plain_per_second": count / (time.perf_counter() - began)}
