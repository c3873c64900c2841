"""
Reads all events: each once, each stream in order, whatever transactions are open meanwhile.

The order of positions is not that of commits: a reader that remembered the last position would miss what commits
later at a lower one. So a cursor is a snapshot: which transactions had ended, and so have been shown. Between two
snapshots lies a delta, the events of those that ended meanwhile, sorted by position. Who wrote version 2 of a stream
had seen version 1: a snapshot that sees the one sees the other, and of a delta with both, position tells the order.

A small delta is found by its transaction ids, which costs as much as it has events. One that is larger than a page is
frozen: the cursor keeps the newer snapshot too, and where the page ended. Sorting the whole for every page would take
for ever, so the rest is read along the positions: from the first of a transaction that began after the older snapshot
nearly every event belongs to the delta. Before it are only those of the few that were running then.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, TypeAlias

import asyncpg
import msgspec

from eventflow.errors import DatabaseUnavailableError, ForeignCursorError, ForeignEventsError, InvalidCursorError
from eventflow.eventstore import Page
from eventflow.postgres.connection import Connection, Lanes
from eventflow.postgres.event_rows import stored_event
from eventflow.postgres.statements import statement
from eventflow.postgres.transactions import roll_back

FREEZE_SECONDS = 60.0
"""How long it may take to find where a large delta begins: a look at the index entry of each of its events."""

_Number: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Xid: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]


class Visible(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """
    The transactions that had ended when a snapshot was taken: all below *end* but those *running*, which ascend.

    >>> before, now = Visible(5, (3,)), Visible(9, (6, 7))
    >>> now.since(before)
    [(3, 3), (5, 5), (8, 8)]
    """

    end: _Xid
    running: tuple[_Xid, ...] = ()

    @property
    def snapshot(self) -> tuple[int, int, tuple[int, ...]]:
        """As the driver writes a ``pg_snapshot``."""
        return (self.running[0] if self.running else self.end, self.end, self.running)

    def since(self, before: "Visible") -> list[tuple[int, int]]:
        """Those that have ended since an earlier snapshot, as ranges: first and last transaction id."""
        return [*((xid, xid) for xid in self.late_since(before)), *self.begun_since(before)]

    def late_since(self, before: "Visible") -> list[int]:
        """Those that were running then."""
        return [xid for xid in before.running if xid < self.end and xid not in self.running]

    def begun_since(self, before: "Visible") -> list[tuple[int, int]]:
        """Those of which the earlier snapshot knew nothing, as ranges."""
        ranges: list[tuple[int, int]] = []
        first = before.end
        for running in (*(xid for xid in self.running if xid >= first), self.end):
            if first < running:
                ranges.append((first, running - 1))
            first = running + 1
        return ranges


NOTHING = Visible(1)
"""Before the first transaction."""


class Rest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """
    What is left of a delta that is larger than a page.

    Attributes:
        until: The newer snapshot.
        floor: Before this position are only events of transactions that were running at the older snapshot.
        last: No event of the delta is beyond this position.
        after: Position of the last event that was shown.
    """

    until: Visible
    floor: _Number
    last: _Number
    after: _Number = 0


class Cursor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """
    Where a reader is.

    Attributes:
        shown: All that is visible in this snapshot has been shown.
        rest: Of the delta after it, if a part of that has been shown too.
    """

    shown: Visible
    rest: Rest | None = None

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """
        The cursor in a text.

        Raises:
            InvalidCursorError: there is none.
        """
        if not text:
            return cls(NOTHING)
        try:
            return _cursor.decode(text)
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            raise InvalidCursorError(text) from exc

    def __str__(self) -> str:
        return msgspec.json.encode(self).decode()

    @property
    def newest(self) -> Visible:
        """The latest snapshot in it."""
        return self.shown if self.rest is None else self.rest.until


_cursor = msgspec.json.Decoder(Cursor)


async def read_page(lanes: Lanes, schema: str, cursor: str, limit: int) -> Page:
    """
    The page after a cursor; see :meth:`~eventflow.eventstore.EventStore.read_all`.

    Args:
        lanes: Connections for reading.
    """
    position = Cursor.parse(cursor)
    async with lanes.connection() as connection, _one_snapshot(connection):
        row = await _row(connection, "select_snapshot", schema)
        if row["is_standby"]:
            raise DatabaseUnavailableError("the database is a standby, which does not tell what is being written")
        _, end, running = row["snapshot"]
        if position.newest.end > end:
            raise ForeignCursorError(position.newest.end, end)
        page = await _Reading(connection, schema, Visible(end, running), limit).page(position)
    return Page([stored_event(row) for row in page.rows], str(page.cursor), page.is_last)


class _Rows(msgspec.Struct, frozen=True):
    """A page as it was read."""

    rows: Sequence[asyncpg.Record]
    cursor: Cursor
    is_last: bool


class _Reading:
    """One page's reading, in a transaction that sees what *now* says."""

    def __init__(self, connection: Connection, schema: str, now: Visible, limit: int) -> None:
        self._connection = connection
        self._schema = schema
        self._now = now
        self._limit = limit

    async def page(self, cursor: Cursor) -> _Rows:
        if cursor.rest is not None:
            page = await self._next(cursor.shown, cursor.rest)
            if page.rows or page.is_last:
                return page
            cursor = Cursor(cursor.rest.until)
        if cursor.shown == NOTHING:
            await self._last_event()
        new = await self._new(cursor.shown)
        if len(new) <= self._limit:
            return _Rows(sorted(new, key=_position), Cursor(self._now), is_last=True)
        return await self._next(cursor.shown, await self._freeze(cursor.shown))

    async def _new(self, shown: Visible) -> Sequence[asyncpg.Record]:
        """What there is to show, if it fits a page; else more than that, and not what comes first."""
        ranges = self._now.since(shown)
        return await self._rows("read_new_events", *_columns(ranges), self._limit + 1) if ranges else []

    async def _freeze(self, shown: Visible) -> Rest:
        last = await self._last_event()
        if shown == NOTHING:
            return Rest(self._now, floor=0, last=last)
        first = await _row(
            self._connection,
            "select_first_position",
            self._schema,
            *_columns(self._now.begun_since(shown)),
            timeout=FREEZE_SECONDS,
        )
        return Rest(self._now, floor=last + 1 if first["position"] is None else first["position"], last=last)

    async def _next(self, shown: Visible, rest: Rest) -> _Rows:
        rows = await self._rows(
            "read_events",
            shown.snapshot,
            rest.until.snapshot,
            rest.until.late_since(shown),
            rest.after,
            rest.floor,
            rest.last,
            self._limit + 1,
        )
        if len(rows) <= self._limit:
            return _Rows(rows, Cursor(rest.until), is_last=rest.until == self._now)
        rows = rows[: self._limit]
        return _Rows(rows, Cursor(shown, msgspec.structs.replace(rest, after=rows[-1]["position"])), is_last=False)

    async def _last_event(self) -> int:
        """The last position in the log, 0 if it is empty."""
        row = await _row(self._connection, "select_last_event", self._schema)
        if row["position"] is None:
            return 0
        if row["xid"] >= self._now.end:
            raise ForeignEventsError(row["xid"], self._now.end)
        return row["position"]

    async def _rows(self, name: str, *arguments: object) -> Sequence[asyncpg.Record]:
        return await self._connection.fetch(statement(name, self._schema), *arguments)


@asynccontextmanager
async def _one_snapshot(connection: Connection) -> AsyncGenerator[None]:
    """A transaction whose statements all see the same."""
    scope = connection.transaction(isolation="repeatable_read", readonly=True)
    try:
        await scope.start()
        yield
        await scope.commit()
    except asyncpg.PostgresError:
        await roll_back(connection, scope)
        raise
    except BaseException:  # as for any transaction of our own, a ROLLBACK might wait for a server that is gone
        connection.terminate()
        raise


async def _row(
    connection: Connection, name: str, schema: str, *arguments: object, timeout: float | None = None
) -> asyncpg.Record:
    [row] = await connection.fetch(statement(name, schema), *arguments, timeout=timeout)
    return row


def _columns(ranges: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [first for first, _ in ranges], [last for _, last in ranges]


def _position(row: asyncpg.Record) -> int:
    return row["position"]
