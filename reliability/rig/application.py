"""The workload in real processes: what handlers do is told to a file that survives them."""

import os
import select
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from eventflow import CommandContext, JobContext, Services
from eventflow.clock import to_microseconds
from reliability.faults import Fault
from reliability.history import AnyEntry, Began, Ended, Failed, Saw, line_of
from reliability.rig.ledger import Ledger
from reliability.workload import Effects, flow_of

DIRECTORY, NAME, IS_OLD = "EVENTFLOW_RIG_DIRECTORY", "EVENTFLOW_RIG_NAME", "EVENTFLOW_RIG_OLD"
WALL_MINUS_MONOTONIC = "EVENTFLOW_RIG_WALL_MINUS_MONOTONIC"
"""What the rig tells its processes in their environment."""


class Diary:
    """
    Entries of one process, each written at once and as a whole: SIGKILL leaves those before it.

    Times are the machine's monotonic clock, which all its processes share.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self._file = os.open(directory / f"{name}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, entry: AnyEntry) -> None:
        """Add an entry."""
        os.write(self._file, line_of(entry))


def diary_of_this_process() -> Diary:
    """Where the rig looks for it."""
    return Diary(Path(os.environ[DIRECTORY]), os.environ[NAME])


class _Effects:
    def __init__(self, diary: Diary, ledger: Ledger) -> None:
        self._diary = diary
        self._ledger = ledger
        self._wall_minus_monotonic = float(os.environ[WALL_MINUS_MONOTONIC])

    async def began(self, number: int, context: JobContext | CommandContext) -> None:
        attempt, due_us = 0, 0
        if isinstance(context, JobContext):
            attempt, due_us = context.attempt, to_microseconds(context.due_at)
        now = time.monotonic()
        store_us = int((now + self._wall_minus_monotonic) * 1e6)  # the same machine's; its wall clock may look wrong
        self._diary.note(Began(now, self._diary.name, number, attempt, store_us, due_us))

    async def ended(self, number: int, context: JobContext | CommandContext) -> None:
        await self._ledger.book(number, self._diary.name)
        self._diary.note(Ended(time.monotonic(), self._diary.name, number))

    async def saw(self, account_id: str, stream_version: int) -> None:
        self._diary.note(Saw(time.monotonic(), self._diary.name, account_id, stream_version))

    async def nap(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def block(self, seconds: float) -> None:
        self._diary.note(Failed(time.monotonic(), Fault.BLOCK.value, self._diary.name, seconds))
        select.select((), (), (), seconds)  # nothing else goes on in this event loop; libfaketime breaks time.sleep

    async def die(self) -> None:
        self._diary.note(Failed(time.monotonic(), Fault.KILL.value, self._diary.name))
        os.kill(os.getpid(), signal.SIGKILL)


@asynccontextmanager
async def _lifespan(services: Services) -> AsyncGenerator[None]:
    async with Ledger.of_this_process() as ledger:
        services.register_value(Effects, _Effects(diary_of_this_process(), ledger))
        yield


flow = flow_of(_lifespan, is_new=IS_OLD not in os.environ)
