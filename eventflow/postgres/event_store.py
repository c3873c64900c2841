"""The event store on Postgres."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from eventflow.eventstore import (
    Changes,
    History,
    Page,
    ReceiptKey,
    Snapshot,
    StoredEvent,
    StreamId,
)
from eventflow.postgres.all_events import read_page
from eventflow.postgres.commits import PostgresCommits
from eventflow.postgres.connection import AnyConnection, Lanes
from eventflow.postgres.event_rows import past_events, stored_event
from eventflow.postgres.statements import statement
from eventflow.postgres.translation import DRIVER_ERRORS, translate


class PostgresEventStore:
    """
    An :class:`~eventflow.eventstore.EventStore` on Postgres.

    Args:
        loading: Connections for commands, apart from those for commits.
        reading_all: Those for readers of all events, so that no command waits for a page.
        commits: Writes changes.
    """

    def __init__(self, loading: Lanes, reading_all: Lanes, commits: PostgresCommits, schema: str) -> None:
        self._loading = loading
        self._reading_all = reading_all
        self._commits = commits
        self._schema = schema

    async def load(
        self, stream: StreamId, *, after: int = 0, limit: int | None = None, connection: Any = None
    ) -> Sequence[StoredEvent]:
        async with self._connection(connection) as reading:
            rows = await reading.fetch(
                statement("load_events", self._schema), stream.aggregate_name, stream.aggregate_id, after, limit
            )
        return [stored_event(row, stream) for row in rows]

    async def look(
        self,
        stream: StreamId | None,
        receipt: ReceiptKey,
        *,
        snapshot_version: int | None = None,
        connection: Any = None,
    ) -> History:
        async with self._connection(connection) as reading:
            rows = await reading.fetch(
                statement("look_back", self._schema),
                None if stream is None else stream.aggregate_name,
                None if stream is None else stream.aggregate_id,
                receipt.scope,
                receipt.aggregate_id,
                receipt.source_id,
                snapshot_version,
            )
        if not rows or rows[0]["name"] is not None:
            return History(events=past_events(rows))
        stream_version, _, version, data = rows[0]
        if version is None:
            return History(result=data)
        return History(snapshot=Snapshot(stream_version, version, data.encode()), events=past_events(rows[1:]))

    async def append(self, changes: Changes, *, connection: Any = None) -> None:
        await self._commits.commit(changes, connection=connection)

    async def read_all(self, cursor: str = "", *, limit: int = 1000) -> Page:
        if limit < 1:
            raise ValueError(f"a page has at least one event, not {limit}")
        return await read_page(self._reading_all, self._schema, cursor, limit)

    @asynccontextmanager
    async def _connection(self, callers: "AnyConnection | None") -> AsyncGenerator[AnyConnection]:
        if callers is None:
            async with self._loading.connection() as own:
                yield own
        else:
            try:
                yield callers
            except DRIVER_ERRORS as exc:
                raise translate(exc, self._schema) from exc
