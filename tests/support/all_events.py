"""Reads all events on Postgres a page at a time, among writers with transactions of their own."""

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import asyncpg

from eventflow.eventstore import StreamId
from eventflow.postgres import Connection
from eventflow.postgres.statements import statement
from tests.support.event_stores import EventStores, changes
from tests.support.postgres import Database

Position = tuple[str, int]
"""An event: of which stream, which version."""

TAKE_XID = "SELECT pg_current_xact_id()"
"""Gives a transaction its id before it writes."""
FILL = """
    INSERT INTO eventflow.event (aggregate_name, aggregate_id, stream_version, xid, id, name, version, data, metadata)
    SELECT 'Order', 'order-' || n % 1000, n / 1000 + 1, (3 + n / 300)::text::xid8, gen_random_uuid(), 'Noted', 1,
        '{"filler": "..............................................................................................."}',
        '{"source_id": "test"}'
    FROM generate_series(0, $1 - 1) AS n
"""
"""Fills the log with so many events that look old."""


class Reader:
    """
    Reads all events, a page at a time, each time from the text of its cursor.

    Attributes:
        shown: What it was shown, in order.
    """

    def __init__(self, stores: EventStores, *, limit: int = 1000) -> None:
        self.shown: list[Position] = []
        self.cursor = ""
        self._stores = stores
        self._limit = limit
        self._versions = Counter[str]()

    async def read(self) -> bool:
        """Read a page, check that no event is repeated or left out within its stream; whether it was the last."""
        page = await self._stores.events.read_all(self.cursor, limit=self._limit)
        self.cursor = page.cursor
        assert len(page.events) <= self._limit
        assert page.events or page.is_last
        for event in page.events:
            owner = event.stream.aggregate_id
            assert event.stream_version == self._versions[owner] + 1, f"{owner} is shown out of order"
            self._versions[owner] += 1
            self.shown.append((owner, event.stream_version))
        return page.is_last

    async def read_to_end(self) -> list[Position]:
        """Read until nothing is left; what was shown meanwhile."""
        before = len(self.shown)
        while not await self.read():
            pass
        return self.shown[before:]


class Writer:
    """A connection of a worker's, with transactions of its own."""

    def __init__(self, stores: EventStores, connection: Connection) -> None:
        self.connection = connection
        self._stores = stores

    async def execute(self, sql: str) -> None:
        """Run a statement."""
        await self.connection.execute(sql)

    async def append(self, to: StreamId, version: int) -> None:
        """Append the event that gets this version, in the open transaction."""
        change = changes(to, str(version), expected_version=version - 1)
        await self._stores.events.append(change, connection=self.connection)

    async def append_next(self, to: StreamId) -> Position:
        """Wait for others who write to the stream, and append its next event."""
        await self.connection.fetch(statement("lock_stream"), to.aggregate_name, to.aggregate_id)
        loaded = await self._stores.events.load(to, connection=self.connection)
        await self.append(to, len(loaded) + 1)
        return to.aggregate_id, len(loaded) + 1


@asynccontextmanager
async def writer(stores: EventStores, database: Database) -> AsyncGenerator[Writer]:
    """One that connects for the time of a block."""
    connection = await asyncpg.connect(database.worker, command_timeout=60)
    try:
        yield Writer(stores, connection)
    finally:
        await connection.close(timeout=5)
