"""SAQ, on Postgres with psycopg and on Redis."""

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from saq import Queue, Worker

from benchmarks.contestants.interface import Started
from benchmarks.peers.concurrency import each, running

NOT_KEPT = -1
"""Seconds that a finished job is kept."""


class _Producer:
    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    async def enqueue(self, number: int) -> None:
        await self._queue.enqueue("tick", ttl=NOT_KEPT, number=number)

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        await each(numbers, self.enqueue)

    async def enqueue_at(self, jobs: Sequence[tuple[int, datetime]]) -> None:
        async def enqueue(job: tuple[int, datetime]) -> None:
            number, due = job
            await self._queue.enqueue("tick", ttl=NOT_KEPT, scheduled=math.ceil(due.timestamp()), number=number)

        await each(jobs, enqueue)


@asynccontextmanager
async def producing(queue: Queue) -> AsyncGenerator[_Producer]:
    """A producer on this queue, connected while the block lasts."""
    await queue.connect()
    try:
        yield _Producer(queue)
    finally:
        await queue.disconnect()


@asynccontextmanager
async def working(queue: Queue, started: Started, *, concurrency: int) -> AsyncGenerator[None]:
    """A worker on this queue, with so many jobs at once."""

    async def tick(_: Any, *, number: int) -> None:
        started(number)

    await queue.connect()
    try:
        async with running(Worker(queue, [("tick", tick)], concurrency=concurrency).start()):
            yield
    finally:
        await queue.disconnect()
