"""Subscribers that run in the process that has committed, right after it."""

import logging
from collections.abc import Sequence

from eventflow.commands import Causation
from eventflow.errors import DatabaseError
from eventflow.eventstore import Changes, Event, EventDefinitions, EventStore, RecordedEvent, StoredEvent
from eventflow.jobs import UnitsOfWork, nothing_of
from eventflow.services import Services
from eventflow.subscribers.subscriber import FunctionSubscriber, SubscriberContext

log = logging.getLogger("eventflow.subscribers")


class InlineSubscribers:
    """
    Tells subscribers of events that have just been committed; what fails here is not tried again.

    Args:
        subscribers: In this order, for each event.
        definitions: How events are read.
        events: Where they are.
        services: Where subscribers get their services from.
        raise_errors: Errors go to who published the command, once all subscribers were told; else they are only logged.
    """

    def __init__(
        self,
        subscribers: Sequence[FunctionSubscriber],
        *,
        definitions: EventDefinitions,
        events: EventStore,
        services: Services,
        raise_errors: bool,
    ) -> None:
        self._subscribers = subscribers
        self._definitions = definitions
        self._events = events
        self._services = services
        self._raise_errors = raise_errors
        self.units: UnitsOfWork  # set by who makes them, which need this

    async def committed(self, changes: Changes) -> None:
        """
        Tell subscribers of the events in *changes*.

        Raises:
            ExceptionGroup: some failed, and errors are to be raised.
        """
        if changes.stream is None or not changes.events or not self._subscribers:
            return
        errors: list[Exception] = []
        written: Sequence[StoredEvent] = []
        try:
            written = await self._events.load(changes.stream, after=changes.expected_version, limit=len(changes.events))
        except DatabaseError as exc:  # the command is done all the same, and its caller must not take it for undone
            log.exception("subscriber.failed", extra={"stream": str(changes.stream)})
            errors.append(exc)
        for stored in written:
            for recorded in self._definitions.read(stored):
                errors += await self._tell(recorded)
        if errors and self._raise_errors:
            raise ExceptionGroup(f"inline subscribers failed after {changes.stream} was written", errors)

    async def _tell(self, recorded: RecordedEvent[Event]) -> list[Exception]:
        errors: list[Exception] = []
        for subscriber in self._subscribers:
            if subscriber.wants(type(recorded.event)):
                try:
                    await self._run(subscriber, recorded)
                except Exception as exc:
                    about = {"subscriber": subscriber.name, "event_id": recorded.stored.id}
                    log.exception("subscriber.failed", extra=about)
                    errors.append(exc)
        return errors

    async def _run(self, subscriber: FunctionSubscriber, recorded: RecordedEvent[Event]) -> None:
        stored = recorded.stored
        unit = self.units(Causation(stored.metadata.correlation_id or stored.id, stored.id))
        try:
            async with self._services.scope() as services:
                await subscriber.call(recorded.event, SubscriberContext(recorded, services=services, unit=unit))
            if unit.jobs or unit.wants_commit:
                await unit.commit(nothing_of(stored.id))
        finally:
            await unit.close()
