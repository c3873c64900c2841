"""Events as rows."""

from collections.abc import Sequence
from typing import cast

import asyncpg
import msgspec

from eventflow.clock import to_datetime
from eventflow.errors import UndecodableMessageError
from eventflow.eventstore import EventId, EventMetadata, PastEvent, StoredEvent, StreamId
from eventflow.serialization import text_of

_metadata = msgspec.json.Decoder(EventMetadata)


def stored_event(row: asyncpg.Record, stream: StreamId | None = None) -> StoredEvent:
    """
    The event in a row of ``load_events.sql`` or ``read_events.sql``.

    Args:
        row: With the columns of the stream, unless it is given.
        stream: Where the event is.

    Raises:
        UndecodableMessageError: somebody else wrote it, and not as events are written.
    """
    try:
        return StoredEvent(
            id=EventId.of(row["id"]),
            stream=stream or StreamId(row["aggregate_name"], row["aggregate_id"]),
            stream_version=row["stream_version"],
            position=row["position"],
            name=row["name"],
            version=row["version"],
            data=row["data"],
            metadata=_metadata.decode(row["metadata"]),
            recorded_at=to_datetime(row["recorded_us"]),
        )
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as exc:
        raise UndecodableMessageError(row["name"], row["version"], text_of(exc)) from exc


def past_events(rows: Sequence[asyncpg.Record]) -> Sequence[PastEvent]:
    """The events in rows of ``look_back.sql``: their columns in this order are what is wanted, without a copy."""
    return cast("Sequence[PastEvent]", rows)
