"""The event store in memory: for tests, prototypes and simulation."""

from collections.abc import Sequence
from typing import Any

from eventflow.clock import Clock
from eventflow.errors import (
    DeadlinePassedError,
    EventFlowError,
    ForeignCursorError,
    InvalidCursorError,
    OptimisticConcurrencyError,
)
from eventflow.eventstore.changes import Changes, Deadline, History, ReceiptKey, Snapshot
from eventflow.eventstore.events import StoredEvent, StreamId
from eventflow.eventstore.store import Page
from eventflow.ids import JobId


class InMemoryEventStore:
    """
    An :class:`~eventflow.eventstore.EventStore` that forgets everything with its process.

    Args:
        clock: Its wall time is the store's time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._all: list[StoredEvent] = []
        self._streams: dict[StreamId, list[StoredEvent]] = {}
        self._receipts: dict[ReceiptKey, bytes] = {}
        self._snapshots: dict[StreamId, Snapshot] = {}
        self._deadlines: dict[Deadline, JobId] = {}

    async def load(
        self, stream: StreamId, *, after: int = 0, limit: int | None = None, connection: Any = None
    ) -> Sequence[StoredEvent]:
        refuse_connection(connection)
        return self._streams.get(stream, [])[after : None if limit is None else after + limit]

    async def look(
        self,
        stream: StreamId | None,
        receipt: ReceiptKey,
        *,
        snapshot_version: int | None = None,
        connection: Any = None,
    ) -> History:
        refuse_connection(connection)
        result = self._receipts.get(receipt)
        if result is not None:
            return History(result=result.decode())
        if stream is None:
            return History()
        snapshot = self._snapshots.get(stream)
        if snapshot is not None and (snapshot_version is None or snapshot.version > snapshot_version):
            snapshot = None
        events = self._streams.get(stream, [])[0 if snapshot is None else snapshot.stream_version :]
        return History(snapshot=snapshot, events=[event.past for event in events])

    def version_of(self, stream: StreamId) -> int:
        """The number of its events."""
        return len(self._streams.get(stream, ()))

    async def append(self, changes: Changes, *, connection: Any = None) -> None:
        refuse_connection(connection)
        self.write(changes)

    def check(self, changes: Changes, *, job_id: JobId | None = None) -> None:
        """Refuse what cannot be written, as :meth:`append` does."""
        stream, receipt = changes.stream, changes.receipt
        if stream is not None and changes.events and self.version_of(stream) != changes.expected_version:
            raise OptimisticConcurrencyError(stream, changes.expected_version)
        fires = changes.fires
        if fires is not None and (job_id is None or self._deadlines.get(fires) != job_id):
            raise DeadlinePassedError(fires.stream, fires.name)
        if receipt is not None and receipt.key in self._receipts:
            raise receipt.key.duplicate()

    def write(self, changes: Changes, *, job_id: JobId | None = None) -> list[JobId]:
        """
        What :meth:`append` does, at once.

        Args:
            changes: What to write.
            job_id: The job in which they were made.

        Returns:
            The jobs of deadlines that were replaced or cancelled.
        """
        self.check(changes, job_id=job_id)
        if changes.receipt is not None:
            self._receipts[changes.receipt.key] = changes.receipt.result
        if changes.fires is not None:
            del self._deadlines[changes.fires]
        if changes.stream is None:
            return []
        self._add_events(changes, changes.stream)
        if changes.snapshot is not None:
            self._snapshots[changes.stream] = changes.snapshot
        replaced: list[JobId] = []
        for name, new in changes.deadlines.items():
            deadline = Deadline(changes.stream, name)
            before = self._deadlines.pop(deadline, None)
            if before is not None:
                replaced.append(before)
            if new is not None:
                self._deadlines[deadline] = new
        return replaced

    async def read_all(self, cursor: str = "", *, limit: int = 1000) -> Page:
        if limit < 1:
            raise ValueError(f"a page has at least one event, not {limit}")
        start = _start(cursor)
        if start > len(self._all):
            raise ForeignCursorError(start, len(self._all))
        events = self._all[start : start + limit]
        return Page(events, str(start + len(events)), is_last=start + len(events) == len(self._all))

    def _add_events(self, changes: Changes, stream: StreamId) -> None:
        present = self._streams.setdefault(stream, [])
        for number, new in enumerate(changes.events, start=changes.expected_version + 1):
            event = StoredEvent(
                id=new.id,
                stream=stream,
                stream_version=number,
                position=len(self._all) + 1,
                name=new.name,
                version=new.version,
                data=new.data.decode(),
                metadata=changes.metadata,
                recorded_at=self._clock.now(),
            )
            present.append(event)
            self._all.append(event)


def _start(cursor: str) -> int:
    if cursor and not (cursor.isascii() and cursor.isdecimal()):
        raise InvalidCursorError(cursor)
    return int(cursor or 0)


def refuse_connection(connection: object) -> None:
    """A store in memory takes part in nobody's transaction."""
    if connection is not None:
        raise EventFlowError("connection= needs a database; this application keeps everything in memory")
