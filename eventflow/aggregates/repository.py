"""Between streams and aggregates: loading by replay, from the newest snapshot on."""

import logging
from typing import Any, TypeVar

from eventflow.aggregates.aggregate import (
    Aggregate,
    advance,
    enter,
    snapshot_every,
    stream_of,
)
from eventflow.aggregates.definitions import AggregateDefinitions
from eventflow.eventstore import EventDefinitions, EventStore, History, ReceiptKey, Snapshot
from eventflow.ids import Identity
from eventflow.messages import declaration

log = logging.getLogger("eventflow.aggregates")

AggregateT = TypeVar("AggregateT", bound=Aggregate[Any])

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

    async def load(self, aggregate_type: type[AggregateT], aggregate_id: Identity) -> AggregateT:
        """
        The aggregate as its events have made it; a new one if there are none.

        Raises:
            UnknownEventDefinitionError: it has an event that nobody registered.
            UndecodableMessageError: an event cannot be read.
            MissingApplierError: an event has no applier.
        """
        stream = stream_of(aggregate_type, aggregate_id)
        history = await self._store.look(stream, _NO_RECEIPT, snapshot_version=self.snapshot_version(aggregate_type))
        return self.rebuild(aggregate_type, aggregate_id, history)

    def snapshot_version(self, aggregate_type: type[Aggregate[Any]]) -> int | None:
        """The newest version of its snapshots that can be read; ``None``: it has none."""
        return None if snapshot_every(aggregate_type) is None else declaration(aggregate_type).version

    def rebuild(self, aggregate_type: type[AggregateT], aggregate_id: Identity, history: History) -> AggregateT:
        """The aggregate that a look at its stream amounts to; raises as :meth:`load`."""
        aggregate = self._begin(aggregate_type, aggregate_id, history.snapshot)
        for stored in history.events:
            for recorded in self._events.read(stored):
                aggregate.apply(recorded.event)
            advance(aggregate, stored.stream_version)
        return aggregate

    def snapshot_of(self, aggregate: Aggregate[Any], since: int) -> Snapshot | None:
        """
        Its snapshot, if one is due.

        Args:
            aggregate: With what it has just emitted.
            since: Version of the last snapshot, 0 if there is none.
        """
        every = snapshot_every(type(aggregate))
        version = aggregate.stream_version + len(aggregate.uncommitted_events)
        if every is None or version - since < every:
            return None
        definition, data = self._aggregates.encode(aggregate)
        return Snapshot(version, definition.version, data)

    def _begin(self, aggregate_type: type[AggregateT], aggregate_id: Identity, snapshot: Snapshot | None) -> AggregateT:
        if snapshot is None:
            made: AggregateT = enter(aggregate_type(), aggregate_id, 0)
            return made
        name = declaration(aggregate_type).name
        state = self._aggregates.decode(name, snapshot.version, snapshot.data)
        upgraded: AggregateT = enter(state, aggregate_id, snapshot.stream_version)
        return upgraded
