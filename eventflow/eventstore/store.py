"""The port between aggregates and where their events are kept. Its docstrings are the contract of every store."""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from eventflow.eventstore.changes import Changes, History, ReceiptKey
from eventflow.eventstore.events import StoredEvent, StreamId


class Page(msgspec.Struct, frozen=True):
    """
    Some of all events, and where to go on.

    Attributes:
        events: Each stream's in order; none is shown twice from page to page. Only a last page is empty.
        cursor: Opaque text, to go on from.
        is_last: Nothing more was committed when this was read; reading after its cursor shows what was since.
    """

    events: Sequence[StoredEvent]
    cursor: str
    is_last: bool


class EventStore(Protocol):
    """
    Keeps events, receipts, deadlines and snapshots.

    A *connection* is the caller's own transaction: what is read there and written there belongs to it.
    """

    async def load(
        self, stream: StreamId, *, after: int = 0, limit: int | None = None, connection: Any = None
    ) -> Sequence[StoredEvent]:
        """The events of a stream beyond a version, in order; empty if there are none."""
        ...

    async def look(
        self,
        stream: StreamId | None,
        receipt: ReceiptKey,
        *,
        snapshot_version: int | None = None,
        connection: Any = None,
    ) -> History:
        """
        What a command needs to begin, in one round trip.

        Args:
            stream: Whose events; ``None``: no events.
            receipt: The operation that may have been done before; if so, nothing but its result is read.
            snapshot_version: Version of the newest snapshot that can be read; ``None``: from no snapshot.
        """
        ...

    async def append(self, changes: Changes, *, connection: Any = None) -> None:
        """
        Write *changes*, all or nothing.

        Raises:
            OptimisticConcurrencyError: the stream has other events than expected.
            DuplicateReceiptError: the operation was done before.
            DeadlinePassedError: the deadline that *changes* would fire was replaced or cancelled.
            DatabaseUnavailableError: nothing was written.
            CommitUnknownError: the connection broke and it cannot be told.
        """
        ...

    async def read_all(self, cursor: str = "", *, limit: int = 1000) -> Page:
        """
        All events of all streams, a page at a time.

        Each event is shown exactly once, streams in order, whatever transactions are open while it is read: what
        commits late comes late, and holds nothing up. Between streams there is no order.

        Args:
            cursor: Of the page before; ``""``: from the beginning. Who keeps it for long keeps it beside the events:
                a crash or failover that sets the store back must set it back too.
            limit: Most events of a page; from 1.

        Raises:
            InvalidCursorError: the text is no cursor.
            ForeignCursorError: the cursor lies in this store's future; it comes from another.
            ForeignEventsError: the events were copied here from another store, so that their order is lost.
            DatabaseUnavailableError: the database cannot be reached, or is a standby.
        """
        ...
