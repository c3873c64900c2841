"""
The physical limit: what one would write by hand in asyncpg on eventflow's own tables, with the same guarantees.

A job is claimed by a statement that moves its row, fenced by worker and claim number; it is ended by another. Both go
over one connection, in turns. Nothing else is done: no leases, retries, history, due times kept in memory.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec

from benchmarks.contestants import ours
from benchmarks.contestants.interface import Started
from eventflow.postgres import Connection

COLUMNS = """
id, queue_id, lane, priority, due_at, ready_at, expires_at, created_at, name, version, payload, headers, tags,
aggregate_id, key, batch_id, retry, timeout_us
"""
CLAIM = f"""
WITH ready AS MATERIALIZED (
    SELECT id FROM eventflow.job
    WHERE queue_id = $2 AND lane = 0 AND priority = 1 AND parked IS NULL
      AND ready_at >= $3 AND ready_at <= statement_timestamp()
    ORDER BY ready_at, id LIMIT $4 FOR UPDATE SKIP LOCKED
), claimed AS (
    DELETE FROM eventflow.job WHERE id = ANY (ARRAY(SELECT id FROM ready)) RETURNING *
), moved AS (
    INSERT INTO eventflow.running (worker_id, claimed_at, {COLUMNS}, attempt, crashes, claim_no, past_attempts)
    SELECT $1, statement_timestamp(), {COLUMNS}, attempt + 1, crashes, claim_no + 1, past_attempts FROM claimed
    RETURNING id, claim_no, ready_at, payload::text AS payload
)
SELECT * FROM moved ORDER BY ready_at, id
"""
COMPLETE = """
DELETE FROM eventflow.running WHERE id = ANY (ARRAY(
    SELECT r.id FROM unnest($2::uuid[], $3::integer[]) AS e (id, claim_no) CROSS JOIN LATERAL (
        SELECT x.id, x.worker_id, x.claim_no FROM eventflow.running AS x WHERE x.id = e.id OFFSET 0
    ) AS r WHERE r.worker_id = $1 AND r.claim_no = e.claim_no
))
"""
INSERT = """
INSERT INTO eventflow.job (id, queue_id, due_at, ready_at, name, version, payload)
VALUES ($1, $2, clock_timestamp(), clock_timestamp(), 'Tick', 1, $3)
"""
COPIED = ("id", "queue_id", "due_at", "ready_at", "name", "version", "payload")
QUEUE = """
INSERT INTO eventflow.queue (name) VALUES ('default') ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id
"""
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
CONNECTIONS = 20
PINNED = {"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"}
"""A plan made for an empty table would be kept for a full one."""


class _Tick(msgspec.Struct):
    number: int


class _Producer:
    def __init__(self, connections: Sequence[Connection], queue_id: int) -> None:
        self._free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        for connection in connections:
            self._free.put_nowait(connection)
        self._queue_id = queue_id
        self._inserted = asyncio.Event()

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[Connection]:
        connection = await self._free.get()
        try:
            yield connection
        finally:
            self._free.put_nowait(connection)

    async def notify(self, connection: Connection) -> None:
        """Wake workers after commits, apart from the transactions that insert; many at once."""
        while True:
            await self._inserted.wait()
            self._inserted.clear()
            await connection.execute("SELECT pg_notify('eventflow', '')")

    async def enqueue(self, number: int) -> None:
        async with self._connection() as connection:
            await connection.execute(INSERT, uuid.uuid4(), self._queue_id, f'{{"number":{number}}}')
        self._inserted.set()

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        now = datetime.now(UTC)
        rows = ((uuid.uuid4(), self._queue_id, now, now, "Tick", 1, f'{{"number":{number}}}') for number in numbers)
        async with self._connection() as connection:
            await connection.copy_records_to_table("job", schema_name="eventflow", columns=COPIED, records=rows)

    async def enqueue_at(self, jobs: Sequence[tuple[int, datetime]]) -> None:
        raise NotImplementedError("what is written by hand here knows no due times; the catalogue says so")


class Batches100:
    """Claims a hundred jobs at a time."""

    batch = 100

    async def set_up(self, address: str) -> None:
        await ours.Way().set_up(address)

    @asynccontextmanager
    async def producer(self, address: str) -> AsyncGenerator[_Producer]:
        async with AsyncExitStack() as stack:
            connections: list[Connection] = []
            for _ in range(CONNECTIONS + 1):
                connections.append(await asyncpg.connect(address))
                stack.push_async_callback(connections[-1].close)
            notifying = connections.pop()
            producer = _Producer(connections, await notifying.fetchval(QUEUE))
            task = asyncio.get_running_loop().create_task(producer.notify(notifying))
            yield producer
            task.cancel()

    @asynccontextmanager
    async def worker(self, address: str, started: Started) -> AsyncGenerator[None]:
        connection: Connection = await asyncpg.connect(address, server_settings=PINNED)
        listening: Connection = await asyncpg.connect(address)
        woken = asyncio.Event()

        def wake(*_: Any) -> None:
            woken.set()

        await listening.add_listener("eventflow", wake)
        task = asyncio.get_running_loop().create_task(self._work(connection, started, woken))
        yield
        task.cancel()

    async def _work(self, connection: Connection, started: Started, woken: asyncio.Event) -> None:
        worker_id, queue_id = uuid.uuid4(), await connection.fetchval(QUEUE)
        claim, complete = await connection.prepare(CLAIM), await connection.prepare(COMPLETE)
        decode = msgspec.json.Decoder(_Tick).decode
        bound = LONG_AGO
        while True:
            woken.clear()
            rows = await claim.fetch(worker_id, queue_id, bound, self.batch)
            if not rows:
                await woken.wait()
                continue
            for row in rows:
                started(decode(row["payload"]).number)
            await complete.fetch(worker_id, [row["id"] for row in rows], [row["claim_no"] for row in rows])
            if len(rows) == self.batch:
                bound = rows[-1]["ready_at"]  # nobody else inserts meanwhile


class Batches1000(Batches100):
    """Claims a thousand jobs at a time."""

    batch = 1000
