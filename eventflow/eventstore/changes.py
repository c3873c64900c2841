"""What one command writes to the store, in one transaction."""

from collections.abc import Mapping, Sequence

import msgspec

from eventflow.errors import DuplicateOperationError
from eventflow.eventstore.events import EventMetadata, NewEvent, PastEvent, StreamId
from eventflow.ids import JobId


class ReceiptKey(msgspec.Struct, frozen=True):
    """
    What makes an operation the same one: who it concerns, and its source id.

    Attributes:
        scope: The aggregate's name, or the command's where there is no aggregate.
        aggregate_id: Or ``""``.
    """

    scope: str
    aggregate_id: str
    source_id: str

    def duplicate(self, result: object = None) -> DuplicateOperationError:
        """The error for doing it again."""
        return DuplicateOperationError(self.source_id, f"{self.scope} {self.aggregate_id}".strip(), result)


class Receipt(msgspec.Struct, frozen=True):
    """
    Shows that an operation was done, and what came of it.

    Attributes:
        result: JSON.
    """

    key: ReceiptKey
    result: bytes


class Snapshot(msgspec.Struct, frozen=True):
    """
    The state of an aggregate after some of its events, so that they need not be replayed.

    Attributes:
        stream_version: The last event in it.
        version: Of the aggregate's definition.
        data: JSON.
    """

    stream_version: int
    version: int
    data: bytes


class Step(msgspec.Struct, frozen=True):
    """
    A subscriber that takes events in order has dealt with one, and goes on.

    Attributes:
        subscriber: Its name.
        stream: Where the events are.
        stream_version: Of its next event in the stream; if there is none, of the last that was looked at.
        following: The job of its next event; ``None``: there is none yet, which is refused if there are more events.
    """

    subscriber: str
    stream: StreamId
    stream_version: int
    following: JobId | None = None


class Deadline(msgspec.Struct, frozen=True):
    """
    Names a deadline: its aggregate's stream, and its name there.

    What is published when it comes may be a command for any aggregate.
    """

    stream: StreamId
    name: str


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """
    Everything that one command changes in one stream, or in none: all of it is written, or nothing.

    Attributes:
        metadata: Of all its events.
        stream: Where the events go; ``None``: there is none, and no events, deadlines and snapshot either.
        expected_version: Events that the writer has seen in the stream.
        events: In order; the first gets version ``expected_version + 1``.
        receipt: Refused if there is one for the same operation already.
        deadlines: By name the job that is due then, which replaces the one before; ``None``: there is none any more.
        fires: The deadline that this is: refused if it was replaced or cancelled meanwhile.
        snapshot: Of the stream, with these events.
        step: Of a subscriber, in its line.
    """

    metadata: EventMetadata
    stream: StreamId | None = None
    expected_version: int = 0
    events: tuple[NewEvent, ...] = ()
    receipt: Receipt | None = None
    deadlines: Mapping[str, JobId | None] = {}
    fires: Deadline | None = None
    snapshot: Snapshot | None = None
    step: Step | None = None


class History(msgspec.Struct, frozen=True, kw_only=True):
    """
    What there was before a command.

    Attributes:
        result: Of the same operation, done before, as JSON; ``None``: it was not.
        snapshot: The newest, if it was asked for.
        events: Those after the snapshot, by version.
    """

    result: str | None = None
    snapshot: Snapshot | None = None
    events: Sequence[PastEvent] = ()
