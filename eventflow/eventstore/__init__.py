"""Events and their streams: definitions, the store's protocol, and a store in memory."""

from eventflow.eventstore.changes import Changes, Deadline, History, Receipt, ReceiptKey, Snapshot, Step
from eventflow.eventstore.definitions import EventDefinitions, reads_event
from eventflow.eventstore.events import (
    Event,
    EventId,
    EventMetadata,
    NewEvent,
    PastEvent,
    RecordedEvent,
    StoredEvent,
    StreamId,
    event_version,
)
from eventflow.eventstore.in_memory import InMemoryEventStore
from eventflow.eventstore.store import EventStore, Page

__all__ = [
    "Changes",
    "Deadline",
    "Event",
    "EventDefinitions",
    "EventId",
    "EventMetadata",
    "EventStore",
    "History",
    "InMemoryEventStore",
    "NewEvent",
    "Page",
    "PastEvent",
    "Receipt",
    "ReceiptKey",
    "RecordedEvent",
    "Snapshot",
    "Step",
    "StoredEvent",
    "StreamId",
    "event_version",
    "reads_event",
]
