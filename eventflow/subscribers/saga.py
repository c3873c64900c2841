"""Sagas: aggregates that follow the events of others, and decide what comes next."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Any, Generic, TypeVar, Union, get_args, get_origin

import msgspec

from eventflow.aggregates import Aggregate, applies, id_type
from eventflow.aggregates.aggregate import IdT
from eventflow.commands import Command, CommandContext, CommandExecution, CommandHandler
from eventflow.definitions import annotations_of, describe
from eventflow.errors import DuplicateOperationError, InvalidHandlerError
from eventflow.eventstore import Event, RecordedEvent, event_version
from eventflow.ids import Identity, SourceId
from eventflow.invocation import Invoker
from eventflow.jobs import JobContext
from eventflow.messages import declaration
from eventflow.serialization import Codec
from eventflow.subscribers.subscriber import event_types_of

M = TypeVar("M", bound=Callable[..., Any])

_HANDLES = "__eventflow_handles__"


@event_version("SagaCompleted")
class SagaCompleted(Event):
    """A saga has come to its end."""


class Saga(Aggregate[IdT], Generic[IdT]):
    """
    Base of sagas: ``class Fulfilment(Saga[OrderId])``; registered with ``@flow.saga``.

    Its id is found in the events that it handles; its state comes from the events that it emits itself. Commands and
    deadlines that a handler schedules are written in one transaction with these. A redelivered event changes nothing.

    >>> class OrderId(Identity):
    ...     pass
    >>> class OrderPlaced(Event):
    ...     total_cents: int
    >>> class StockReserved(Event):
    ...     order_id: OrderId
    >>> class Fulfilment(Saga[OrderId]):
    ...     @starts_with
    ...     async def placed(self, event: OrderPlaced, context: CommandContext) -> None: ...
    ...
    ...     @handles(by="order_id")
    ...     async def reserved(self, event: StockReserved, context: CommandContext) -> None:
    ...         self.complete()
    """

    is_completed: bool = False

    def complete(self) -> None:
        """From now on no event is handled any more."""
        self.emit(SagaCompleted())

    @applies
    def _completed(self, event: SagaCompleted) -> None:
        self.is_completed = True


class _Handling(msgspec.Struct, frozen=True):
    """
    How a saga handles events of one type.

    Attributes:
        by: Field of the event that has the saga's id; ``None``: the id of the aggregate whose event it is.
    """

    method: Callable[..., Any]
    starts: bool
    by: str | None


def starts_with(method: M) -> M:
    """Mark ``(self, event: SomeEvent, context: CommandContext)``: with it a saga of its aggregate's id begins."""
    setattr(method, _HANDLES, (True, None))
    return method


def handles(*, by: str | None = None, starts: bool = False) -> Callable[[M], M]:
    """
    Mark ``(self, event: SomeEvent, context: CommandContext)``: what the saga does with such an event.

    Args:
        by: Field of the event that has the saga's id; ``None``: the id of the aggregate whose event it is.
        starts: A saga may begin with it; others are ignored before that.
    """

    def mark(method: M) -> M:
        setattr(method, _HANDLES, (starts, by))
        return method

    return mark


class HandleEvent(Command[Identity]):
    """How an event reaches a saga: as an operation with the event's id."""

    events: Any  # what one stored event was read as; this is never encoded


class _SagaHandler(CommandHandler):
    """Runs the saga's method for an event."""

    def __init__(self, saga_type: type[Saga[Any]], invoker: Invoker) -> None:
        self._invoker = invoker
        self._saga_type = saga_type
        self.aggregate_type = saga_type
        self.command_type = HandleEvent
        self.name = f"{saga_type.__module__}.{saga_type.__qualname__}"
        self.result = Codec(type(None))

    async def __call__(self, *arguments: Any) -> None:
        saga, command, context = arguments
        for event in command.events:
            handling = handlings_of(self._saga_type)[type(event)]
            if not saga.is_completed and (handling.starts or not saga.is_new or saga.uncommitted_events):
                await self._invoker.call(handling.method, saga, event, context)


class SagaSubscriber:
    """
    Routes events to sagas of one type.

    Args:
        saga_type: The sagas.
        invoker: Calls their methods.
    """

    is_ordered = True

    def __init__(self, saga_type: type[Saga[Any]], invoker: Invoker) -> None:
        self.saga_type = saga_type
        self.name = declaration(saga_type).name
        self.execution: CommandExecution  # set when the application is opened
        self._handler = _SagaHandler(saga_type, invoker)
        if not handlings_of(saga_type):
            raise InvalidHandlerError(f"{saga_type.__qualname__} handles no events: mark methods with @handles")

    def wants(self, event_type: type[Event]) -> bool:
        return event_type in handlings_of(self.saga_type)

    async def handle(self, events: Sequence[RecordedEvent[Event]], job: JobContext) -> None:
        located = [(saga_id, recorded) for recorded in events if (saga_id := self._locate(recorded)) is not None]
        if not located:
            return
        saga_id, first = located[0]
        if any(other != saga_id for other, _ in located):
            raise InvalidHandlerError(
                f"{self.saga_type.__qualname__}: {first.stored.id} was upgraded into events for several sagas"
            )
        command = HandleEvent(
            aggregate_id=saga_id,
            source_id=SourceId(first.stored.id),
            events=[recorded.event for _, recorded in located],
        )
        try:
            await self.execution.execute(command, self._handler, job.unit)
        except DuplicateOperationError:
            return  # it was delivered before

    def _locate(self, recorded: RecordedEvent[Event]) -> Identity | None:
        by = handlings_of(self.saga_type)[type(recorded.event)].by
        found = recorded.stored.stream.aggregate_id if by is None else getattr(recorded.event, by)
        located: Identity | None = None if found is None else id_type(self.saga_type)(str.__str__(found))
        return located


@cache
def handlings_of(saga_type: type[Saga[Any]]) -> Mapping[type[Event], _Handling]:
    """
    By event type, how a saga handles it; methods of a subclass go before its base's.

    A method that overrides one that is marked takes its place, marked or not.

    Raises:
        InvalidHandlerError: a marked method has other annotations, or two handle one event.
    """
    found: dict[type[Event], _Handling] = {}
    marked: set[str] = set()
    for owner in saga_type.__mro__:
        here: dict[type[Event], _Handling] = {}
        for name, method in vars(owner).items():
            mark = getattr(method, _HANDLES, None)
            if mark is None or name in marked:
                continue
            marked.add(name)
            for event_type in _handled_types(method, mark[1], id_type(saga_type)):
                if event_type in here:
                    raise InvalidHandlerError(f"{describe(method)}: {event_type.__qualname__} is handled already")
                here[event_type] = _Handling(getattr(saga_type, name), *mark)
        found = here | found
    return found


def _handled_types(method: Callable[..., Any], by: str | None, saga_id: Any) -> tuple[type[Event], ...]:
    hints = annotations_of(method)
    hints.pop("return", None)
    annotations = list(hints.values())
    types = event_types_of(annotations[0]) if annotations else ()
    if len(annotations) != 2 or not types or annotations[1] is not CommandContext:
        raise InvalidHandlerError(
            f"{describe(method)} must be annotated as (self, event: SomeEvent, context: CommandContext) -> None"
        )
    for event_type in types:
        if by is None:
            continue
        field = next((field for field in msgspec.structs.fields(event_type) if field.name == by), None)
        if field is None:
            raise InvalidHandlerError(f"{describe(method)}: {event_type.__qualname__} has no field {by!r}")
        if not _may_be_id(field.type, saga_id):
            raise InvalidHandlerError(
                f"{describe(method)}: {event_type.__qualname__}.{by} is no {saga_id.__qualname__}, nor any text"
            )
    return types


def _may_be_id(field: Any, saga_id: Any) -> bool:  # Any: whatever annotations stand there
    members = get_args(field) if get_origin(field) in (Union, UnionType) else (field,)
    return any(not isinstance(member, type) or member is str or issubclass(member, saga_id) for member in members)
