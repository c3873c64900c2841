"""The application that acceptance tests run in processes of their own; its effects are rows."""

import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta

import anyio.lowlevel
import asyncpg

from eventflow import CommandContext, EventFlow, Job, JobContext, OnError, RetryPolicy, Services, StandaloneCommand
from eventflow.clock import SystemClock

CREATE_EFFECTS = """
CREATE TABLE effect (
    number integer NOT NULL, kind text NOT NULL, pid integer NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
GRANT SELECT, INSERT ON effect TO PUBLIC;
"""


class Effects:
    """Writes down that something ran, when, and in which process."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    async def record(self, number: int, kind: str) -> None:
        await self._pool.execute(
            "INSERT INTO effect (number, kind, pid) VALUES ($1, $2, $3)", number, kind, os.getpid()
        )


@asynccontextmanager
async def lifespan(services: Services) -> AsyncGenerator[None]:
    async with asyncpg.create_pool(os.environ["EVENTFLOW_DSN"], min_size=0, max_size=3) as pool:
        services.register_value(Effects, Effects(pool))
        yield


flow = EventFlow("shop", lifespan=lifespan)
quickly = RetryPolicy(max_attempts=3, base=timedelta(milliseconds=20))


class Record(StandaloneCommand[None]):
    """Leaves one row, and takes a while."""

    number: int
    milliseconds: int = 0


@flow.command_handler
async def record(command: Record, context: CommandContext) -> None:
    effects = await context.services.aget(Effects)
    await effects.record(command.number, "record")
    if command.milliseconds:
        await SystemClock().sleep(command.milliseconds / 1000)


@flow.job(retry=quickly)
class Parent(Job):
    """Has a child if, and only if, it completes."""

    number: int

    async def execute(self, context: JobContext) -> None:
        effects = await context.services.aget(Effects)
        await effects.record(self.number, "parent")
        context.schedule(Child(number=self.number))


@flow.job
class Child(Job):
    number: int

    async def execute(self, context: JobContext) -> None:
        effects = await context.services.aget(Effects)
        await effects.record(self.number, "child")


@flow.job(retry=quickly)
class Flaky(Job):
    """Fails once."""

    number: int

    async def execute(self, context: JobContext) -> None:
        effects = await context.services.aget(Effects)
        await effects.record(self.number, "flaky")
        await anyio.lowlevel.checkpoint()
        if context.attempt == 1:
            raise RuntimeError("the first attempt fails")


@flow.job(retry=RetryPolicy(max_attempts=1, on={KeyError: OnError.IGNORE}))
class Doomed(Job):
    """Fails for good."""

    number: int

    async def execute(self, context: JobContext) -> None:
        effects = await context.services.aget(Effects)
        await effects.record(self.number, "doomed")
        raise RuntimeError("it always fails")


@flow.job
class Later(Job):
    """Has a child after a while."""

    number: int
    milliseconds: int

    async def execute(self, context: JobContext) -> None:
        await anyio.lowlevel.checkpoint()
        context.schedule(Child(number=self.number), delay=timedelta(milliseconds=self.milliseconds))


@flow.job
class Block(Job):
    """Keeps the event loop of its worker from everything else, half of the time asleep and half of it busy."""

    number: int
    seconds: float

    async def execute(self, context: JobContext) -> None:
        effects = await context.services.aget(Effects)
        await effects.record(self.number, "block")
        time.sleep(self.seconds / 2)  # noqa: TID251 - what a handler should not do
        until = time.monotonic() + self.seconds / 2
        while time.monotonic() < until:
            pass


@flow.job
class Thread(Job):
    """Takes its time in a thread."""

    number: int
    seconds: float

    def execute(self, context: JobContext) -> None:
        time.sleep(self.seconds)  # noqa: TID251 - nothing to wait for
