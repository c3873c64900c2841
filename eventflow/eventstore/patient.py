"""An event store for jobs, which do not fail because the database is away for a moment."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any, TypeVar

from eventflow.clock import Clock
from eventflow.errors import DatabaseUnavailableError
from eventflow.eventstore.changes import Changes, History, ReceiptKey
from eventflow.eventstore.events import StoredEvent, StreamId
from eventflow.eventstore.store import EventStore, Page

T = TypeVar("T")

log = logging.getLogger("eventflow.events")

PATIENCE_SECONDS = 30.0
"""What fails for longer fails its job: it must not keep a slot for ever."""
SLOW_SECONDS = 4.0
"""A read that was given up only after so long is repeated once: a stream that cannot be read within a statement's time
must not keep a connection from others."""
LONGEST_PAUSE_SECONDS = 1.0


class PatientEventStore:
    """
    Loads again while the database is away; what is asked in a transaction fails with that.

    Args:
        store: Where events are.
        clock: Measures the patience.
        rng: Source of the jitter of pauses.
    """

    def __init__(self, store: EventStore, *, clock: Clock, rng: Random) -> None:
        self._store = store
        self._clock = clock
        self._rng = rng

    async def load(
        self, stream: StreamId, *, after: int = 0, limit: int | None = None, connection: Any = None
    ) -> Sequence[StoredEvent]:
        return await self._read(
            stream, lambda: self._store.load(stream, after=after, limit=limit, connection=connection), connection
        )

    async def look(
        self,
        stream: StreamId | None,
        receipt: ReceiptKey,
        *,
        snapshot_version: int | None = None,
        connection: Any = None,
    ) -> History:
        return await self._read(
            stream,
            lambda: self._store.look(stream, receipt, snapshot_version=snapshot_version, connection=connection),
            connection,
        )

    async def append(self, changes: Changes, *, connection: Any = None) -> None:
        await self._store.append(changes, connection=connection)

    async def read_all(self, cursor: str = "", *, limit: int = 1000) -> Page:
        return await self._store.read_all(cursor, limit=limit)

    async def _read(self, stream: StreamId | None, read: Callable[[], Awaitable[T]], connection: Any) -> T:
        began_at, pauses, was_slow = self._clock.monotonic(), 0, False
        while True:
            asked_at = self._clock.monotonic()
            try:
                return await read()
            except DatabaseUnavailableError as exc:
                now = self._clock.monotonic()
                is_slow = now >= asked_at + SLOW_SECONDS
                if connection is not None or now >= began_at + PATIENCE_SECONDS or (is_slow and was_slow):
                    raise
                was_slow = was_slow or is_slow
                if not pauses:
                    log.warning("events.away", extra={"stream": str(stream), "error": str(exc)})
            await self._clock.sleep(self._rng.uniform(0, min(LONGEST_PAUSE_SECONDS, 0.05 * 2**pauses)))
            pauses += 1
