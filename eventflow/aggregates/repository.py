"""Between streams and aggregates: loading by replay, from the newest snapshot on."""

import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from eventflow.aggregates.aggregate import (
    Aggregate,
    advance,
    appliers_of,
    applying,
    check_id,
    enter,
    snapshot_every,
    snapshot_version,
    stream_of,
    undeclared,
)
from eventflow.aggregates.definitions import AggregateDefinitions
from eventflow.errors import InvalidMessageError, MissingApplierError, UndecodableMessageError, UnknownDefinitionError
from eventflow.eventstore import Event, EventDefinitions, EventStore, History, ReceiptKey, Snapshot, StreamId
from eventflow.ids import Identity
from eventflow.messages import declaration
from eventflow.serialization import text_of

log = logging.getLogger("eventflow.aggregates")

AggregateT = TypeVar("AggregateT", bound=Aggregate[Any])
Look = Callable[[int | None], Awaitable[History]]
"""Looks at a stream; takes the newest version of snapshots that can be read, or ``None``: without snapshot."""

_ReplayStep = tuple[Callable[[str], Any], Callable[[Any, Any], None]]
"""Decodes a stored event, and applies what it was read as."""
_ReplaySteps = defaultdict[str, dict[int, _ReplayStep]]
"""By stored name and version."""

_NO_RECEIPT = ReceiptKey("", "", "")


class AggregateRepository:
    """
    Loads aggregates.

    Args:
        store: Where their events are.
        events: How they are read.
        aggregates: How their snapshots are.
    """

    def __init__(self, store: EventStore, events: EventDefinitions, aggregates: AggregateDefinitions) -> None:
        self._store = store
        self._events = events
        self._aggregates = aggregates
        self._known: defaultdict[type[Aggregate[Any]], _ReplaySteps] = defaultdict(lambda: defaultdict(dict))

    async def load(self, aggregate_type: type[AggregateT], aggregate_id: Identity) -> AggregateT:
        """
        The aggregate as its events have made it; a new one if there are none.

        Raises:
            InvalidIdentityError: such aggregates are identified by another type.
            UnknownEventDefinitionError: it has an event that nobody registered.
            UndecodableMessageError: an event cannot be read.
            MissingApplierError: an event has no applier.
        """
        stream = stream_of(aggregate_type, check_id(aggregate_type, aggregate_id))
        return await self.load_by(
            lambda version: self._store.look(stream, _NO_RECEIPT, snapshot_version=version),
            aggregate_type,
            aggregate_id,
        )

    async def load_by(self, look: Look, aggregate_type: type[AggregateT], aggregate_id: Identity) -> AggregateT:
        """Like :meth:`load`, from what *look* finds; a snapshot that cannot be read is as good as none."""
        if snapshot_every(aggregate_type) is None:
            history, state = await look(None), None
        else:
            history = await look(declaration(aggregate_type).version)
            state = self._state(aggregate_type, aggregate_id, history.snapshot)
            if history.snapshot is not None and state is None:
                history = await look(None)
        if history.snapshot is None or state is None:
            aggregate: AggregateT = enter(aggregate_type(), aggregate_id, 0)
        else:
            aggregate = enter(state, aggregate_id, history.snapshot.stream_version)
        self._replay(aggregate, history)
        return aggregate

    def snapshot_of(self, aggregate: Aggregate[Any]) -> Snapshot | None:
        """
        Its snapshot with what it has just emitted, if one is due.

        Raises:
            InvalidMessageError: its state would not survive JSON.
        """
        every = snapshot_every(type(aggregate))
        version = aggregate.stream_version + len(aggregate.uncommitted_events)
        if every is None or version - snapshot_version(aggregate) < every:
            return None
        lost = undeclared(aggregate)
        if lost:
            raise InvalidMessageError(type(aggregate), f"{', '.join(lost)}: not annotated as a field, so not its state")
        definition, data = self._aggregates.encode(aggregate)
        return Snapshot(version, definition.version, data)

    def _replay(self, aggregate: Aggregate[Any], history: History) -> None:
        number, known = aggregate.stream_version, self._known[type(aggregate)]
        try:
            with applying(aggregate):
                for past in history.events:  # thousands, perhaps: no call too many
                    number, name, version, data = past
                    try:
                        decode, apply = known[name][version]
                    except KeyError:
                        decode, apply = known[name][version] = self._step(type(aggregate), name, version)
                    try:
                        event = decode(data)
                    except UndecodableMessageError:
                        raise
                    except Exception as exc:
                        raise UndecodableMessageError(name, version, text_of(exc)) from exc
                    apply(aggregate, event)
            if history.events:
                advance(aggregate, number)
        except Exception as exc:
            exc.add_note(f"This was event {number} of {stream_of(type(aggregate), aggregate.id)}.")
            raise

    def _step(self, aggregate_type: type[Aggregate[Any]], name: str, version: int) -> _ReplayStep:
        """What replay does with events stored under this name and version."""
        codec = self._events.plain(name, version)
        if codec is None:
            return partial(self._events.replay, name, version), _apply_all
        applier = appliers_of(aggregate_type).get(codec.message_type)
        if applier is None:
            raise MissingApplierError(aggregate_type, codec.message_type)
        return codec.decode_bare, applier

    def _state(
        self, aggregate_type: type[AggregateT], aggregate_id: Identity, snapshot: Snapshot | None
    ) -> AggregateT | None:
        """The state in a snapshot; ``None``: there is none, or it cannot be read."""
        if snapshot is None:
            return None
        stream, reason = stream_of(aggregate_type, aggregate_id), f"no upgrader leads to {aggregate_type.__qualname__}"
        try:
            state = self._aggregates.decode(stream.aggregate_name, snapshot.version, snapshot.data)
            if isinstance(state, aggregate_type):
                return state
        except (UnknownDefinitionError, UndecodableMessageError) as exc:
            reason = str(exc)
        _log_unreadable(stream, snapshot, reason)
        return None


def _apply_all(aggregate: Aggregate[Any], events: Sequence[Event]) -> None:
    for event in events:
        aggregate.apply(event)


def _log_unreadable(stream: StreamId, snapshot: Snapshot, reason: str) -> None:
    about = {"stream": str(stream), "version": snapshot.version, "reason": reason}
    log.warning("snapshot.unreadable", extra=about)
