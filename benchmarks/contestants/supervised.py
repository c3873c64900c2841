"""
The application that ``eventflow worker --processes N`` runs: no-op jobs, and a file of what each process has started.

The files survive a process that is killed. Processes wait for the file ``begin``, so that all set out together.
"""

import asyncio
import mmap
import os
import struct
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.contestants.ours import Tick
from eventflow import EventFlow, Services

DIRECTORY, ROOM = "BENCHMARK_DIRECTORY", "BENCHMARK_ROOM"
"""Names of variables: where the files are, and how many starts there is room for in each."""
COUNT, START = struct.Struct("q"), struct.Struct("qd")
BEGIN_SECONDS = 0.002


class Starts:
    """
    The jobs that one process has started, in a file: their number, then the number and instant of each.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.pid = int(path.name.partition("-")[2])
        with path.open("r+b") as file:
            self._shown = mmap.mmap(file.fileno(), 0)

    @classmethod
    def make(cls, directory: Path, room: int) -> "Starts":
        """That of this process."""
        path = directory / f"starts-{os.getpid()}"
        with path.open("wb") as file:
            file.truncate(COUNT.size + room * START.size)
        return cls(path)

    @classmethod
    def all(cls, directory: Path) -> list["Starts"]:
        """Those of all processes there have been."""
        return [cls(path) for path in directory.glob("starts-*") if path.stat().st_size]

    @property
    def count(self) -> int:
        """Of jobs."""
        return int(COUNT.unpack_from(self._shown)[0])

    def note(self, number: int) -> None:
        """A job starts now."""
        count = self.count
        START.pack_into(self._shown, COUNT.size + count * START.size, number, time.monotonic())
        COUNT.pack_into(self._shown, 0, count + 1)

    def __iter__(self) -> Iterator[tuple[int, float]]:
        """Number and instant of each, by instant."""
        end = COUNT.size + self.count * START.size
        return START.iter_unpack(self._shown[COUNT.size : end])


@asynccontextmanager
async def lifespan(services: Services) -> AsyncGenerator[None]:
    directory = Path(os.environ[DIRECTORY])
    Tick.started = Starts.make(directory, int(os.environ[ROOM])).note
    while not (directory / "begin").exists():
        await asyncio.sleep(BEGIN_SECONDS)
    yield


flow = EventFlow("benchmark", lifespan=lifespan)
flow.job(Tick)
