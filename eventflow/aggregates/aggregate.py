"""Aggregates: the boundary within which rules hold, kept as the events that happened to it."""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, cached_property
from inspect import iscoroutinefunction
from types import UnionType
from typing import Any, Generic, Self, TypeVar, Union, cast, get_args, get_origin

import msgspec
from typing_extensions import dataclass_transform

from eventflow.definitions import annotations_of, describe
from eventflow.errors import DefinitionError, InvalidHandlerError, InvalidIdentityError, MissingApplierError
from eventflow.eventstore import Event, NewEvent, StreamId
from eventflow.eventstore.events import EventId
from eventflow.ids import Identity
from eventflow.messages import declaration, declare
from eventflow.serialization import Codec

IdT = TypeVar("IdT", bound=Identity)
A = TypeVar("A", bound="type[Aggregate[Any]]")
F = TypeVar("F", bound=Callable[..., None])

_APPLIES = "__eventflow_applies__"
_SNAPSHOT_EVERY = "__eventflow_snapshot_every__"
_TAKEN = frozenset({"id", "stream_version", "uncommitted_events", "is_new", "new", "emit", "apply"})


@dataclass_transform(kw_only_default=True, field_specifiers=(msgspec.field,))
class AggregateMeta(msgspec.StructMeta):
    """Makes every subclass a mutable, keyword-only struct with room for what is not its state."""

    def __new__(  # noqa: PYI034 - a metaclass cannot say Self
        mcls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        snapshot_every: int | None = None,
        **options: Any,
    ) -> "AggregateMeta":
        if snapshot_every is not None and snapshot_every < 1:
            raise ValueError(f"{name}: snapshot_every={snapshot_every}: at least 1")
        options.setdefault("kw_only", True)
        options.setdefault("dict", True)
        made = super().__new__(mcls, name, bases, namespace, **options)
        taken = sorted(_TAKEN.intersection(made.__struct_fields__))
        if taken:  # it would hide the aggregate's own, and the events go to the wrong stream
            raise InvalidHandlerError(f"{name}: {', '.join(taken)}: every aggregate has that; call the field otherwise")
        if snapshot_every is not None:
            setattr(made, _SNAPSHOT_EVERY, snapshot_every)
        return made


class _Stream:
    """What an aggregate knows of its stream."""

    def __init__(self, aggregate_id: Identity, stream_version: int) -> None:
        self.aggregate_id = aggregate_id
        self.stream_version = stream_version
        self.snapshot_version = stream_version
        self.emitted: list[tuple[Event, bytes]] = []
        self.is_applying = False


# Stands on the base class too: pyright reads it on the metaclass, mypy here.
@dataclass_transform(kw_only_default=True, field_specifiers=(msgspec.field,))
class Aggregate(msgspec.Struct, Generic[IdT], metaclass=AggregateMeta):
    """
    Base of aggregates: ``class Order(Aggregate[OrderId])``.

    Annotated fields are the state, each with a default: what an aggregate is before its first event. Methods decide
    and :meth:`emit` events; methods marked :func:`applies` change the state, and do nothing else. With
    ``snapshot_every=100`` in the class statement the state is stored after every hundred events, so that not all have
    to be replayed; then it has to survive JSON, and a change of it needs a new :func:`aggregate_version`.

    >>> class CartId(Identity):
    ...     pass
    >>> class ItemAdded(Event):
    ...     name: str
    >>> class Cart(Aggregate[CartId]):
    ...     items: int = 0
    ...
    ...     def add(self, name: str) -> None:
    ...         self.emit(ItemAdded(name=name))
    ...
    ...     @applies
    ...     def _added(self, event: ItemAdded) -> None:
    ...         self.items += 1
    >>> cart = Cart.new(CartId.new())
    >>> cart.add("book")
    >>> cart.items, cart.stream_version, cart.uncommitted_events
    (1, 0, (ItemAdded(name='book'),))
    """

    @classmethod
    def new(cls, aggregate_id: IdT) -> Self:
        """An aggregate to which nothing has happened; raises :class:`InvalidIdentityError`."""
        return enter(cls(), check_id(cls, aggregate_id), 0)

    @property
    def id(self) -> IdT:
        """Its identity."""
        return cast("IdT", _stream(self).aggregate_id)

    @property
    def stream_version(self) -> int:
        """How many events are stored; those just emitted are not counted."""
        return _stream(self).stream_version

    @property
    def uncommitted_events(self) -> tuple[Event, ...]:
        """What was emitted since it was loaded, in order."""
        return tuple(event for event, _ in _stream(self).emitted)

    @property
    def is_new(self) -> bool:
        """Whether nothing has been stored of it."""
        return self.stream_version == 0

    def emit(self, event: Event) -> None:
        """
        Let something happen: checks the event, applies it, and keeps it for the commit.

        Raises:
            InvalidMessageError: the event would not survive JSON; the state is as before.
            MissingApplierError: no method of the aggregate applies it.
            DefinitionError: another event is just being applied.
        """
        stream, data = _stream(self), codec_of(type(event)).encode(event)
        if stream.is_applying:  # it would happen again whenever the aggregate is loaded
            raise DefinitionError(
                f"{type(self).__qualname__} emits {type(event).__qualname__} while it applies an event; what applies "
                "events only changes the state"
            )
        with applying(self):
            self.apply(event)
        stream.emitted.append((event, data))

    def apply(self, event: Event) -> None:
        """Change the state as an event says, without emitting it; what replay does."""
        applier = appliers_of(type(self)).get(type(event))
        if applier is None:
            raise MissingApplierError(type(self), type(event))
        applier(self, event)


def enter(aggregate: Any, aggregate_id: Identity, stream_version: int) -> Any:  # Any: whichever aggregate it is
    """Tell a state which stream it is of, and how many of its events are in it."""
    aggregate.__dict__["_stream"] = _Stream(aggregate_id, stream_version)
    return aggregate


def _stream(aggregate: Aggregate[Any]) -> _Stream:
    stream = aggregate.__dict__.get("_stream")
    if not isinstance(stream, _Stream):
        raise TypeError(f"make it with {type(aggregate).__qualname__}.new(aggregate_id)")
    return stream


@contextmanager
def applying(aggregate: Aggregate[Any]) -> Generator[None]:
    """Within the block events are applied, and none may be emitted."""
    stream = _stream(aggregate)
    stream.is_applying = True
    try:
        yield
    finally:
        stream.is_applying = False


def check_id(aggregate_type: type[Aggregate[Any]], aggregate_id: Identity) -> Identity:
    """Refuse what is no identity of such an aggregate: under it there is nothing, and never was."""
    wanted = id_type(aggregate_type)
    if isinstance(wanted, type) and not isinstance(aggregate_id, wanted):
        raise InvalidIdentityError(
            f"{aggregate_type.__qualname__} is identified by {wanted.__qualname__}, not by {aggregate_id!r}"
        )
    return aggregate_id


def advance(aggregate: Aggregate[Any], stream_version: int) -> None:
    """All events up to this version are in the state."""
    _stream(aggregate).stream_version = stream_version


def snapshot_version(aggregate: Aggregate[Any]) -> int:
    """How many of its events were in the snapshot that it was loaded from; 0: from none."""
    return _stream(aggregate).snapshot_version


def undeclared(aggregate: Aggregate[Any]) -> list[str]:
    """Attributes that were set without being fields: the next snapshot would lose them."""
    return [
        name
        for name in vars(aggregate)
        if name != "_stream" and not isinstance(getattr(type(aggregate), name, None), cached_property)
    ]


def emitted(aggregate: Aggregate[Any]) -> tuple[NewEvent, ...]:
    """What it has emitted, as it is stored."""
    stream_id, version = stream_of(type(aggregate), aggregate.id), aggregate.stream_version
    return tuple(
        NewEvent(EventId.at(stream_id, number), declaration(type(event)).name, declaration(type(event)).version, data)
        for number, (event, data) in enumerate(_stream(aggregate).emitted, start=version + 1)
    )


def applies(method: F) -> F:
    """
    Mark a method ``(self, event: SomeEvent) -> None``, or of a union of events, that changes the state.

    It runs when the event is emitted, and again whenever the aggregate is loaded.
    """
    setattr(method, _APPLIES, True)
    return method


def aggregate_version(name: str, version: int = 1) -> Callable[[A], A]:
    """
    Name the streams of an aggregate, and the version of its snapshots, instead of (class name, 1).

    Args:
        name: Part of every stream's identity: it stays what it is when the class is renamed.
        version: Of the state. Snapshots of an older one are upgraded if there is an upgrader, else not used.
    """
    return declare(name, version, ())


def aggregate_name(aggregate_type: type[Aggregate[Any]]) -> str:
    """The stored name of an aggregate."""
    return declaration(aggregate_type).name


def stream_of(aggregate_type: type[Aggregate[Any]], aggregate_id: Identity) -> StreamId:
    """The stream of one aggregate."""
    return StreamId(aggregate_name(aggregate_type), str.__str__(aggregate_id))


def snapshot_every(aggregate_type: type[Aggregate[Any]]) -> int | None:
    """After how many events its state is stored; ``None``: never."""
    every: int | None = getattr(aggregate_type, _SNAPSHOT_EVERY, None)
    return every


@cache
def id_type(aggregate_type: type[Aggregate[Any]]) -> Any:  # Any: whatever annotation stands there
    """The type parameter of an aggregate's base."""
    for base in aggregate_type.__mro__:
        for generic in vars(base).get("__orig_bases__", ()):
            if isinstance(get_origin(generic), type) and issubclass(get_origin(generic), Aggregate):
                return get_args(generic)[0]
    return Identity


@cache
def appliers_of(aggregate_type: type[Aggregate[Any]]) -> Mapping[type[Event], Callable[[Any, Any], None]]:
    """
    By event type, the method that applies it; those of a subclass go before its base's.

    A method that overrides one that is marked takes its place, marked or not.

    Raises:
        InvalidHandlerError: an annotation is not of an event, or two methods of a class apply one.
    """
    found: dict[type[Event], Callable[[Any, Any], None]] = {}
    marked: set[str] = set()
    for owner in aggregate_type.__mro__:
        here: dict[type[Event], Callable[[Any, Any], None]] = {}
        for name, method in vars(owner).items():
            if getattr(method, _APPLIES, False) and name not in marked:
                marked.add(name)
                for event_type in _event_types(method):
                    if event_type in here:
                        first = describe(here[event_type])
                        raise InvalidHandlerError(
                            f"{first} and {describe(method)} both apply {event_type.__qualname__}"
                        )
                    here[event_type] = getattr(aggregate_type, name)
        found = here | found
    return found


@cache
def codec_of(event_type: type[Event]) -> Codec[Event]:
    """Encodes events of this type."""
    return Codec(event_type)


def _event_types(method: Callable[..., Any]) -> Iterator[type[Event]]:
    hints = annotations_of(method)
    hints.pop("return", None)
    annotations = list(hints.values())
    types = _members(annotations[0]) if len(annotations) == 1 else []
    if not types or not all(isinstance(t, type) and issubclass(t, Event) for t in types):
        raise InvalidHandlerError(f"{describe(method)} must be annotated as (self, event: SomeEvent) -> None")
    if iscoroutinefunction(method):
        raise InvalidHandlerError(f"{describe(method)} must not be async: it only changes the state")
    yield from types


def _members(annotation: Any) -> list[Any]:  # Any: whatever annotation stands there
    return list(get_args(annotation)) if get_origin(annotation) in (Union, UnionType) else [annotation]
