"""Which events a program can read and write."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from inspect import iscoroutinefunction
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin

import msgspec

from eventflow.definitions import Definitions, annotations_of, describe
from eventflow.errors import DefinitionError, InvalidHandlerError, UndecodableMessageError, UnknownEventDefinitionError
from eventflow.eventstore.events import Event, RecordedEvent, StoredEvent
from eventflow.serialization import Codec, text_of

EventUpgrader = Callable[[Any], Event | Iterable[Event] | None]  # Any: its own source type


class Upgrade(msgspec.Struct, frozen=True):
    """
    An upgrader of events, and what its annotations say.

    Attributes:
        single: What it may return as one event.
        several: What it may return several of.
        drops: It may return ``None``: the event is left out.
    """

    function: EventUpgrader
    source: type[Event]
    single: tuple[type[Event], ...]
    several: tuple[type[Event], ...]
    drops: bool

    @property
    def targets(self) -> tuple[type[Event], ...]:
        """Every type that it may lead to."""
        return tuple(dict.fromkeys((*self.single, *self.several)))

    def __call__(self, event: Event) -> list[Event]:
        """
        What the event is read as.

        Raises:
            UndecodableMessageError: the function fails, or returns what its annotation does not say.
        """
        name = self.function.__qualname__
        try:
            returned = self.function(event)
            is_several = bool(self.several) and isinstance(returned, Iterable)
            results = list(cast("Iterable[Event]", returned)) if is_several else [cast("Event", returned)]
        except Exception as exc:
            raise UndecodableMessageError("", 0, f"{name} failed: {text_of(exc, repr)}") from exc
        if returned is None and self.drops:
            return []
        for result in results:
            if type(result) not in (self.several if is_several else self.single):
                raise UndecodableMessageError("", 0, f"{name} returned {_shown(returned, result)}")
        return results


class EventDefinitions(Definitions[Event]):
    """
    The events. What was stored as one event may be read as several, or as none.

    An upgrader is ``(old: OrderPlacedV1) -> OrderPlaced``, ``-> list[ItemAdded]``, ``-> tuple[A, B]``, or with
    ``None`` among what it returns. Every type it may return is read from its annotation. It runs whenever such an
    event is read, so it asks nobody and returns the same each time.
    """

    def __init__(self) -> None:
        super().__init__(Event, UnknownEventDefinitionError)
        self._upgrades: dict[type[Event], Upgrade] = {}

    def add_upgrader(self, upgrade: EventUpgrader) -> None:
        added = upgrade_of(upgrade)
        for event_type in (added.source, *added.targets):
            self.add(event_type)
        present = self._upgrades.setdefault(added.source, added)
        if present.function is not upgrade:
            raise DefinitionError(
                f"{added.source.__qualname__} has two upgraders, {describe(present.function)} and {describe(upgrade)}; "
                "chain them instead"
            )

    def read(self, stored: StoredEvent) -> Iterator[RecordedEvent[Event]]:
        """
        What a stored event is read as, by today's definitions.

        Raises:
            UnknownEventDefinitionError: nobody registered it.
            UndecodableMessageError: its type or an upgrader refuses it.
        """
        for event in self.replay(stored.name, stored.version, stored.data):
            yield RecordedEvent(event=event, stored=stored)

    def replay(self, name: str, version: int, data: str) -> Sequence[Event]:
        """The events that stored data is read as; raises as :meth:`read`."""
        event = self.decode(name, version, data)
        if type(event) not in self._upgrades:
            return (event,)
        try:
            return list(self._upgraded(event))
        except UndecodableMessageError as exc:
            raise UndecodableMessageError(name, version, exc.reason) from exc

    def plain(self, name: str, version: int) -> Codec[Event] | None:
        """What reads events that no upgrader changes; ``None``: upgraders have a say."""
        event_type = self.by_name(name, version).type
        return None if event_type in self._upgrades else self._codec(event_type)

    def results(self, event_type: type[Event]) -> set[type[Event]]:
        """The types that events stored as this one are read as."""
        if event_type not in self._upgrades:
            return {event_type}
        return {result for target in self._upgrades[event_type].targets for result in self.results(target)}

    def _upgraded(self, event: Event) -> Iterator[Event]:
        upgrade = self._upgrades.get(type(event))
        if upgrade is None:
            yield event
        else:
            for result in upgrade(event):
                yield from self._upgraded(result)

    def _check_upgrades(self, message_type: type[Event]) -> None:
        self._check_circles([message_type])

    def _check_circles(self, way: list[type[Event]]) -> None:
        for following in self._upgrades[way[-1]].targets if way[-1] in self._upgrades else ():
            if following in way:
                raise DefinitionError(
                    f"upgraders go in a circle: {' → '.join(t.__qualname__ for t in (*way, following))}"
                )
            self._check_circles([*way, following])


def reads_event(upgrade: Callable[..., Any]) -> bool:
    """Whether an upgrader is one of events."""
    hints = annotations_of(upgrade)
    hints.pop("return", None)
    return any(_is_event(hint) for hint in hints.values())


def upgrade_of(function: EventUpgrader) -> Upgrade:
    """
    An upgrader of events, by its annotations.

    Raises:
        InvalidHandlerError: they are not of an upgrader, or it is async.
    """
    hints = annotations_of(function)
    returned = hints.pop("return", None)
    source = next(iter(hints.values()), None)
    members = _members(returned)
    single = tuple(member for member in members if _is_event(member))
    several = tuple(t for member in members if _is_iterable(member) for a in get_args(member) for t in _members(a))
    several = tuple(event_type for event_type in several if event_type is not Ellipsis)
    drops = type(None) in members
    fits = all(_is_event(m) or m is type(None) or _is_iterable(m) for m in members) and all(map(_is_event, several))
    if len(hints) != 1 or not _is_event(source) or not fits or not (single or several or drops):
        raise InvalidHandlerError(
            f"{describe(function)} must be annotated as (old: OldEvent) -> NewEvent, or -> list[NewEvent] for several, "
            "or -> NewEvent | None for one or none"
        )
    if iscoroutinefunction(function):
        raise InvalidHandlerError(f"{describe(function)} must not be async: it runs whenever such an event is read")
    return Upgrade(function, cast("type[Event]", source), single, several, drops)


def _members(annotation: Any) -> list[Any]:  # Any: whatever annotation stands there
    return list(get_args(annotation)) if get_origin(annotation) in (Union, UnionType) else [annotation]


def _is_iterable(annotation: object) -> bool:
    origin = get_origin(annotation)
    return isinstance(origin, type) and issubclass(origin, Iterable) and not issubclass(origin, Mapping)


def _is_event(candidate: object) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, Event)


def _shown(returned: object, result: object) -> str:
    if returned is result:
        return "None" if result is None else type(result).__qualname__
    return f"{type(result).__qualname__} among its events"
