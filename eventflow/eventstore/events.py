"""Events: facts in the past tense, each stored once in its aggregate's stream."""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Generic, TypeAlias, TypeVar
from uuid import UUID

import msgspec

from eventflow.ids import Identity, deterministic_uuid
from eventflow.messages import Message, declare

E = TypeVar("E", bound="type[Event]")
EventT_co = TypeVar("EventT_co", bound="Event", covariant=True)

EVENTS_NAMESPACE = UUID("387f5b61-9e98-439a-bff1-15ad0ea91ea0")
"""Namespace of the deterministic ids of events, as in EventFlow (.NET)."""


class Event(Message):
    """
    Something that happened to an aggregate; named in the past tense.

    >>> class OrderShipped(Event):
    ...     carrier: str
    """


def event_version(name: str, version: int = 1, *, aliases: Iterable[str] = ()) -> Callable[[E], E]:
    """
    Store an event under this name and version instead of (class name, 1). Subclasses do not inherit it.

    Args:
        name: Stored name; 1 to 150 characters without blanks and colons.
        version: From 1; an upgrader leads from each version to the next.
        aliases: Former names that stored events of this version may still carry.
    """
    return declare(name, version, tuple(aliases))


class StreamId(msgspec.Struct, frozen=True):
    """
    Names a stream: the events of one aggregate.

    The aggregate's name is part of it: a saga keyed by an order's id has a stream of its own.
    """

    aggregate_name: str
    aggregate_id: str

    def __str__(self) -> str:
        return f"{self.aggregate_name} {self.aggregate_id}"


class EventId(Identity, prefix="event"):
    """Identity of an event; follows from its stream and its version there, so that it is never made twice."""

    __slots__ = ()

    @classmethod
    def at(cls, stream: StreamId, stream_version: int) -> "EventId":
        """
        The id of the event that is, or will be, at this version of this stream.

        As EventFlow (.NET) computes it, if the aggregate's id is its name and a UUID; else the name goes in too, so
        that two streams of one id have no event in common.

        >>> EventId.at(StreamId("Thingy", "thingy-4b1e7b48-18f1-4215-91d9-903cffdab3d8"), 1)
        EventId('event-d3672a21-317c-577e-a5c1-d2aa554a348c')
        """
        owner = stream.aggregate_id
        if owner[:-36] != f"{stream.aggregate_name.lower()}-":
            owner = f"{stream.aggregate_name}:{owner}"
        return cls.of(str(deterministic_uuid(EVENTS_NAMESPACE, f"{owner}-v{stream_version}".encode())))


class EventMetadata(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    Where an event comes from; the same for all events of one command.

    Attributes:
        source_id: The operation that caused it: a command's source id, or an event's for a saga.
        command: Stored name of the command; ``None``: appended by other means.
        job_id: The job that published the command; ``None``: a direct caller did.
        correlation_id: Shared by everything that follows from one first command or job.
        causation_id: What directly caused it: the job, or the source id of a command published directly.
        traceparent: W3C trace context of the caller, if there was one.
    """

    source_id: str
    command: str | None = None
    job_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    traceparent: str | None = None


class NewEvent(msgspec.Struct, frozen=True):
    """An event on its way to its stream: what is stored."""

    id: EventId
    name: str
    version: int
    data: bytes


PastEvent: TypeAlias = tuple[int, str, int, str]
"""What replay needs of a stored event: its number in the stream, name, version and data (JSON)."""


class StoredEvent(msgspec.Struct, frozen=True, kw_only=True):
    """
    An event as it is stored.

    Attributes:
        stream_version: Counted from 1 within its stream, without gaps.
        position: Grows over all streams, with gaps; not the order of commits.
        data: JSON, in the version it was stored in.
        recorded_at: The store's time when it was written.
    """

    id: EventId
    stream: StreamId
    stream_version: int
    position: int
    name: str
    version: int
    data: str
    metadata: EventMetadata
    recorded_at: datetime

    @property
    def past(self) -> PastEvent:
        """The part of it that replay needs."""
        return (self.stream_version, self.name, self.version, self.data)


class RecordedEvent(msgspec.Struct, Generic[EventT_co], frozen=True, kw_only=True):
    """
    An event with what is known about it, as subscribers and readers get it.

    Attributes:
        event: The event itself, upgraded to its newest type.
        stored: How it is stored.
    """

    event: EventT_co
    stored: StoredEvent
