"""
What the suite asks of a contestant.

Runs in each contestant's own environment, so it needs nothing but the standard library.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol

Started = Callable[[int], None]
"""Called by a job's handler, first thing, with the job's number."""


class Producer(Protocol):
    """Enqueues jobs; each carries a number, and its handler does nothing but tell it."""

    async def enqueue(self, number: int) -> None:
        """One job, durable when this returns; called by many tasks at once."""
        ...

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        """Many, by the fastest documented way to do that."""
        ...

    async def enqueue_at(self, jobs: Sequence[tuple[int, datetime]]) -> None:
        """Many, each to start at an instant of its own."""
        ...


class Contestant(Protocol):
    """A job system in its fastest documented configuration."""

    async def set_up(self, address: str) -> None:
        """Make the tables in a fresh database."""
        ...

    def producer(self, address: str) -> AbstractAsyncContextManager[Producer]:
        """Its connections are open, as many as 20 concurrent callers make good use of."""
        ...

    def worker(self, address: str, started: Started) -> AbstractAsyncContextManager[None]:
        """One worker process's worth, in this process: it works while the block lasts."""
        ...
