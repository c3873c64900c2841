"""
The program that runs in a contestant's environment: ``python -m benchmarks.contestants WAY ROLE ADDRESS SPEC``.

*SPEC* is JSON; what came of it is written as JSON to the file that it names. With the role ``call``, WAY is a function
that measures by itself; it is given the address and the options in the spec. A worker prints ``loaded``, begins with
the first line of its standard input, prints ``ready``, works until that input ends, and shows the number of jobs that
it has started so far in a file of eight bytes.
"""

import asyncio
import importlib
import json
import mmap
import os
import resource
import sys
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.contestants.interface import Contestant, Producer


class Starts:
    """
    Notes the jobs that start.

    Args:
        counter: The file that shows how many.
        timed: Whether each is noted with its instant, or
        timed_from: only those with a number from here on.
    """

    def __init__(self, counter: Path, *, timed: bool, timed_from: int | None = None) -> None:
        counter.write_bytes(bytes(8))
        with counter.open("r+b") as file:
            self._shown = memoryview(mmap.mmap(file.fileno(), 8)).cast("q")
        self._count = 0
        self._timed = timed or timed_from is not None
        self._timed_from = -1 if timed_from is None else timed_from
        self.times: list[tuple[int, float]] = []
        self.memory: list[tuple[int, int]] = []
        self.first: float | None = None

    def note(self, number: int) -> None:
        """One starts now."""
        if not self._count:
            self.first = time.monotonic()
        self._count = self._shown[0] = self._count + 1
        if self._timed and number >= self._timed_from:
            self.times.append((number, time.time()))
        if self._count % 20_000 == 0:
            self.memory.append((self._count, _resident_bytes()))


class Calls:
    """
    Enqueues by single calls.

    Args:
        limit: Seconds after which no more calls are made.
    """

    def __init__(self, producer: Producer, *, limit: float) -> None:
        self._producer = producer
        self._until = time.monotonic() + limit
        self.called: list[tuple[int, float]] = []
        self.took: list[float] = []

    async def one(self, number: int) -> None:
        """One call."""
        self.called.append((number, time.time()))
        began = time.perf_counter()
        await self._producer.enqueue(number)
        self.took.append(time.perf_counter() - began)

    async def concurrently(self, first: int, count: int, callers: int) -> None:
        """So many callers, each one call after the other."""
        numbers = iter(range(first, first + count))

        async def caller() -> None:
            for number in numbers:
                if time.monotonic() > self._until:
                    return
                await self.one(number)

        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(caller())

    async def paced(self, first: int, count: int, every: float) -> None:
        """One call each so many seconds, whether or not the one before has returned."""
        begin = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for nth in range(count):
                await asyncio.sleep(begin + nth * every - time.monotonic())
                if time.monotonic() > self._until:
                    return
                group.create_task(self.one(first + nth))


async def produce(contestant: Contestant, address: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Enqueue as the spec says; seconds without opening connections."""
    first, count, limit = spec.get("first", 0), spec.get("count", 0), spec.get("limit", 20.0)
    async with contestant.producer(address) as producer:
        await producer.enqueue_many([-1])  # whatever is done once is done
        calls = Calls(producer, limit=limit)
        began = time.perf_counter()
        if spec["how"] == "many":
            done = await _many(producer, first, count, batch=spec["batch"], limit=limit)
            return {"count": done, "seconds": time.perf_counter() - began}
        if spec["how"] == "at":
            base = datetime.now(UTC)
            dues = [(first + nth, base + timedelta(seconds=after)) for nth, after in enumerate(spec["after"])]
            for start in range(0, len(dues), 10_000):
                await producer.enqueue_at(dues[start : start + 10_000])
            return {"due": [(number, due.timestamp()) for number, due in dues]}
        if spec["how"] == "paced":
            await calls.paced(first, count, spec["every"])
        else:
            await calls.concurrently(first, count, spec["callers"])
        return {
            "count": len(calls.took),
            "seconds": time.perf_counter() - began,
            "took": calls.took,
            "called": calls.called if spec.get("timed") else [],
        }


async def _many(producer: Producer, first: int, count: int, *, batch: int, limit: float) -> int:
    began, done = time.monotonic(), 0
    while done < count and time.monotonic() - began < limit:
        numbers = range(first + done, first + min(count, done + batch))
        await producer.enqueue_many(numbers)
        done += len(numbers)
    return done


async def work(contestant: Contestant, address: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Work until the standard input ends."""
    starts = Starts(Path(spec["counter"]), timed=spec.get("timed", False), timed_from=spec.get("timed_from"))
    print("loaded", flush=True)
    sys.stdin.readline()
    async with contestant.worker(address, starts.note):
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    return {"first": starts.first, "started": starts.times, "memory": starts.memory}


async def set_up(contestant: Contestant, address: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Make the tables."""
    await contestant.set_up(address)
    return {}


def main() -> None:
    """Play one role."""
    way, role, address, spec = sys.argv[1:]
    module, _, name = way.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)  # Any: a contestant, or its figures
    chosen: dict[str, Any] = json.loads(spec)
    if role == "call":
        playing = found(address, **chosen["options"])
    else:
        playing = {"set_up": set_up, "produce": produce, "work": work}[role](found(), address, chosen)
    result = _run(playing, chosen.get("loop", "uvloop"))
    Path(chosen["result"]).write_text(json.dumps(result))
    os._exit(0)  # what threads and pools a contestant has left behind is not what is measured


def _run(play: Coroutine[Any, Any, dict[str, Any]], loop: str) -> dict[str, Any]:
    if loop == "asyncio":
        return asyncio.run(play)
    uvloop = importlib.import_module("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(play)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
