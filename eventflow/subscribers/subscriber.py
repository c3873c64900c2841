"""Subscribers: functions that react to events, each event a durable job of its own."""

from collections.abc import Callable, Sequence
from datetime import datetime
from types import UnionType
from typing import Any, Protocol, Union, get_args, get_origin

from typing_extensions import Unpack

from eventflow.commands import UnitOfWork
from eventflow.definitions import annotations_of, describe
from eventflow.errors import InvalidHandlerError
from eventflow.eventstore import Event, EventId, EventMetadata, RecordedEvent
from eventflow.ids import JobId
from eventflow.invocation import Invoker
from eventflow.jobs import JobContext
from eventflow.messages import Message, check_name
from eventflow.scheduling import ScheduleOptions
from eventflow.services import ServiceScope

AnySubscriber = Callable[[Any, "SubscriberContext"], Any]
"""(event, context) → None, or an awaitable of it."""


class SubscriberContext:
    """
    The surroundings of one event for one subscriber.

    Attributes:
        event_id: The event, the same in every attempt.
        aggregate_name: Whose it is.
        aggregate_id: As text; the event's own type says more.
        stream_version: Its number in its stream, from 1.
        recorded_at: When it was written, by the store's clock.
        metadata: Where it comes from.
        job_id: The job that deals with it; ``None`` for an inline subscriber.
        attempt: Counted from 1.
        services: The services registered in the flow's lifespan, in a scope of this attempt.
    """

    def __init__(
        self,
        recorded: RecordedEvent[Event],
        *,
        services: ServiceScope,
        unit: UnitOfWork,
        attempt: int = 1,
    ) -> None:
        stored = recorded.stored
        self.event_id: EventId = stored.id
        self.aggregate_name = stored.stream.aggregate_name
        self.aggregate_id = stored.stream.aggregate_id
        self.stream_version = stored.stream_version
        self.recorded_at: datetime = stored.recorded_at
        self.metadata: EventMetadata = stored.metadata
        self.job_id: JobId | None = unit.job_id
        self.attempt = attempt
        self.services = services
        self._unit = unit

    def schedule(self, message: Message, **options: Unpack[ScheduleOptions]) -> JobId:
        """Schedule a command or job in the transaction that completes this job; a failed attempt schedules nothing."""
        return self._unit.schedule(message, **options)

    async def transaction(self) -> Any:
        """A connection in the transaction that completes this job; see :meth:`JobContext.transaction`."""
        return await self._unit.transaction()


class Subscriber(Protocol):
    """
    Reacts to events.

    Attributes:
        name: Stored in its jobs; survives a rename of the function.
        is_ordered: It takes the events of one aggregate in order, one after the other.
    """

    name: str
    is_ordered: bool

    def wants(self, event_type: type[Event]) -> bool:
        """Whether events of this type are for it."""
        ...

    async def handle(self, events: Sequence[RecordedEvent[Event]], job: JobContext) -> None:
        """Deal with one stored event: what its upgraders have made of it, as far as it is wanted."""
        ...


class FunctionSubscriber:
    """
    A subscriber function with what its annotations say.

    Raises:
        InvalidHandlerError: it is not ``(event: SomeEvent, context: SubscriberContext) -> None``.
    """

    def __init__(self, function: AnySubscriber, invoker: Invoker, *, name: str | None, is_ordered: bool) -> None:
        self.function = function
        self.is_ordered = is_ordered
        self.name = name or function.__name__
        self._invoker = invoker
        check_name(self.name)
        hints = annotations_of(function)
        hints.pop("return", None)
        annotations = list(hints.values())
        self.event_types = event_types_of(annotations[0]) if annotations else ()
        if len(annotations) != 2 or not self.event_types or annotations[1] is not SubscriberContext:
            raise InvalidHandlerError(
                f"{describe(function)} must be annotated as (event: SomeEvent, context: SubscriberContext) -> None"
            )

    def wants(self, event_type: type[Event]) -> bool:
        return issubclass(event_type, self.event_types)

    async def handle(self, events: Sequence[RecordedEvent[Event]], job: JobContext) -> None:
        for recorded in events:
            context = SubscriberContext(recorded, services=job.services, unit=job.unit, attempt=job.attempt)
            await self.call(recorded.event, context)

    async def call(self, event: Event, context: SubscriberContext) -> None:
        """Call the function."""
        await self._invoker.call(self.function, event, context)


def event_types_of(annotation: Any) -> tuple[type[Event], ...]:  # Any: whatever annotation stands there
    """The event types that an annotation names, alone or in a union; empty if it names anything else."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    is_all = all(isinstance(member, type) and issubclass(member, Event) for member in members)
    return tuple(members) if is_all else ()
