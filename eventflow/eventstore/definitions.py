"""Which events a program can read and write."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast, get_args

from eventflow.definitions import Definitions, annotations_of, describe
from eventflow.errors import DefinitionError, InvalidHandlerError, UndecodableMessageError, UnknownEventDefinitionError
from eventflow.eventstore.events import Event, RecordedEvent, StoredEvent
from eventflow.serialization import text_of

EventUpgrader = Callable[[Any], Event | Sequence[Event] | None]  # Any: its own source type


class EventDefinitions(Definitions[Event]):
    """
    The events. What was stored as one event may be read as several, or as none.

    An upgrader is ``(old: OrderPlacedV1) -> OrderPlaced``, ``-> list[ItemAdded]``, ``-> tuple[A, B]``, or with
    ``None`` among what it returns. Every type it may return is read from its annotation.
    """

    def __init__(self) -> None:
        super().__init__(Event, UnknownEventDefinitionError)
        self._splits: dict[type[Event], tuple[EventUpgrader, tuple[type[Event], ...]]] = {}

    def add_upgrader(self, upgrade: EventUpgrader) -> None:
        source, targets = event_upgrader_types(upgrade)
        for event_type in (source, *targets):
            self.add(event_type)
        if self._splits.setdefault(source, (upgrade, targets))[0] is not upgrade:
            raise DefinitionError(f"{source.__qualname__} has two upgraders; chain them instead")

    def read(self, stored: StoredEvent) -> Iterator[RecordedEvent[Event]]:
        """
        What a stored event is read as, by today's definitions.

        Raises:
            UnknownEventDefinitionError: nobody registered it.
            UndecodableMessageError: its type or an upgrader refuses it.
        """
        event = self.decode(stored.name, stored.version, stored.data)
        try:
            for upgraded in self._upgraded(event):
                yield RecordedEvent(event=upgraded, stored=stored)
        except UndecodableMessageError as exc:
            raise UndecodableMessageError(stored.name, stored.version, exc.reason) from exc

    def results(self, event_type: type[Event]) -> set[type[Event]]:
        """The types that events stored as this one are read as."""
        if event_type not in self._splits:
            return {event_type}
        return {result for target in self._splits[event_type][1] for result in self.results(target)}

    def _upgraded(self, event: Event) -> Iterator[Event]:
        if type(event) not in self._splits:
            yield event
            return
        upgrade, targets = self._splits[type(event)]
        try:
            returned = upgrade(event)
        except Exception as exc:
            raise UndecodableMessageError("", 0, f"{upgrade.__qualname__} failed: {text_of(exc, repr)}") from exc
        results = () if returned is None else (returned,) if isinstance(returned, Event) else returned
        for result in results:
            if type(result) not in targets:
                raise UndecodableMessageError("", 0, f"{upgrade.__qualname__} returned {type(result).__qualname__}")
            yield from self._upgraded(result)

    def _check_upgrades(self, message_type: type[Event]) -> None:
        self._check_circles([message_type])

    def _check_circles(self, way: list[type[Event]]) -> None:
        for following in self._splits[way[-1]][1] if way[-1] in self._splits else ():
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


def event_upgrader_types(upgrade: Callable[[Any], Any]) -> tuple[type[Event], tuple[type[Event], ...]]:
    """The type that an upgrader of events reads, and those it may return, from its annotations."""
    hints = annotations_of(upgrade)
    returned = hints.pop("return", None)
    source = next(iter(hints.values()), None)
    targets = tuple(dict.fromkeys(_event_types(returned)))
    is_drop = returned is type(None)
    if len(hints) != 1 or not _is_event(source) or not (targets or is_drop):
        raise InvalidHandlerError(f"{describe(upgrade)} must be annotated as (old: OldEvent) -> NewEvent")
    return cast("type[Event]", source), targets


def _event_types(annotation: Any) -> Iterator[type[Event]]:  # Any: whatever annotation stands there
    if _is_event(annotation):
        yield annotation
    for argument in get_args(annotation):
        yield from _event_types(argument)


def _is_event(candidate: object) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, Event)
