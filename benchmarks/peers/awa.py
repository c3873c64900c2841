"""awa (Rust, with Python handlers)."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from awa import AsyncClient

from benchmarks.contestants.interface import Started

CONNECTIONS = 20
QUEUE = "ticks"
WORKERS = 1024
ACTIVATE = "SELECT awa.storage_auto_finalize_if_fresh('awa')::text AS done"
"""What the first worker does to a fresh database, so that a producer may come before it."""


@dataclass
class Tick:
    """Holds its number."""

    number: int


def _client(address: str) -> AsyncClient:
    """The address as its driver wants it: with the user among the options where no host is named."""
    parts = urlsplit(address)
    options = parse_qs(parts.query)
    if parts.username:
        options["user"] = [parts.username]
    return AsyncClient(f"postgresql://{parts.path}?{urlencode(options, doseq=True)}", max_connections=CONNECTIONS)


class _Producer:
    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def enqueue(self, number: int) -> None:
        await self._client.insert(Tick(number), queue=QUEUE)

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        await self._client.enqueue_many_copy([Tick(number) for number in numbers], queue=QUEUE)

    async def enqueue_at(self, jobs: Sequence[tuple[int, datetime]]) -> None:
        at = itemgetter(1)
        for due, together in groupby(sorted(jobs, key=at), key=at):
            await self._client.enqueue_many_copy([Tick(number) for number, _ in together], queue=QUEUE, run_at=due)


class Way:
    """One queue, as its guide says for no-op jobs: 1,024 at once."""

    async def set_up(self, address: str) -> None:
        async with _client(address) as client:
            await client.migrate()
            async with await client.transaction() as transaction:
                await transaction.fetch_one(ACTIVATE)
                await transaction.commit()

    @asynccontextmanager
    async def producer(self, address: str) -> AsyncGenerator[_Producer]:
        async with _client(address) as client:
            yield _Producer(client)

    @asynccontextmanager
    async def worker(self, address: str, started: Started) -> AsyncGenerator[None]:
        async with _client(address) as client:

            @client.task(Tick, queue=QUEUE)
            async def tick(job: Any) -> None:
                started(job.args.number)

            await client.start([(QUEUE, WORKERS)])
            yield
            await client.shutdown(timeout_ms=5000)
