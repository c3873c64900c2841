"""Events: their ids, and how stored ones are read by today's definitions."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest

from eventflow import (
    DefinitionError,
    DuplicateDefinitionError,
    Event,
    EventFlow,
    EventId,
    EventMetadata,
    InvalidHandlerError,
    StoredEvent,
    StreamId,
    UndecodableMessageError,
    UnknownEventDefinitionError,
    event_version,
)
from eventflow.eventstore import EventDefinitions

if TYPE_CHECKING:
    from fractions import Fraction

UUID_TEXT = "4b1e7b48-18f1-4215-91d9-903cffdab3d8"


@event_version("ItemsAdded", 1, aliases=["Added"])
class ItemsAddedV1(Event):
    """How items were added at first: all at once, by their names."""

    names: list[str]


@event_version("ItemsAdded", 2)
class ItemAdded(Event):
    """How they are added now."""

    name: str
    count: int = 1


class ItemCounted(Event):
    """And what became of that."""

    name: str
    count: int


class Noted(Event):
    """An event that nobody upgrades."""

    text: str = ""


def split(old: ItemsAddedV1) -> list[ItemAdded]:
    """One event becomes as many as there are names: several, one, or none."""
    return [ItemAdded(name=name) for name in old.names]


def rename(old: ItemAdded) -> ItemCounted:
    """An event under another name."""
    return ItemCounted(name=old.name, count=old.count)


def drop(old: ItemAdded) -> None:
    """An event that means nothing any more."""


def known(*upgraders: Callable[..., Any], events: Sequence[type[Event]] = ()) -> EventDefinitions:
    """Checked definitions with these upgraders."""
    made = EventDefinitions()
    for upgrader in upgraders:
        made.add_upgrader(upgrader)
    for event_type in events:
        made.add(event_type)
    made.check()
    return made


def stored(data: str, name: str = "ItemsAdded", version: int = 1) -> StoredEvent:
    """An event as a store would hand it out."""
    stream = StreamId("Cart", f"cart-{UUID_TEXT}")
    return StoredEvent(
        id=EventId.at(stream, 3),
        stream=stream,
        stream_version=3,
        position=9,
        name=name,
        version=version,
        data=data,
        metadata=EventMetadata(source_id="command-1"),
        recorded_at=datetime(2030, 1, 1, tzinfo=UTC),
    )


def read(definitions: EventDefinitions, event: StoredEvent) -> list[Event]:
    """What it is read as."""
    return [recorded.event for recorded in definitions.read(event)]


def test_event_id_is_eventflows() -> None:
    """UUIDv5 of "{aggregateId}-v{version}" in the namespace 387F5B61-9E98-439A-BFF1-15AD0EA91EA0."""
    stream = StreamId("Thingy", f"thingy-{UUID_TEXT}")

    assert EventId.at(stream, 1) == "event-d3672a21-317c-577e-a5c1-d2aa554a348c"
    assert EventId.at(stream, 1) == EventId(EventId.at(stream, 1))
    assert EventId.at(stream, 2) != EventId.at(stream, 1)


def test_no_two_streams_have_an_event_id_in_common() -> None:
    """Whatever their names and ids have in common, and whatever an id looks like."""
    names = ["Order", "Order-Item", "OrderSaga", "Orders"]
    ids = [UUID_TEXT, f"order-{UUID_TEXT}", f"order-item-{UUID_TEXT}", f"Order:order-{UUID_TEXT}", "1-v1", "1"]
    places = list(product(names, ids, range(1, 4)))

    made = {EventId.at(StreamId(name, owner), version) for name, owner, version in places}

    assert len(made) == len(places)


def test_upgraders_rename_split_drop_and_chain() -> None:
    """Each step is a function; what one returns goes on to the next, event by event and in order."""
    two = stored('{"names":["a","b"]}')

    assert read(known(events=[ItemsAddedV1]), two) == [ItemsAddedV1(names=["a", "b"])]
    assert read(known(split), two) == [ItemAdded(name="a"), ItemAdded(name="b")]
    assert read(known(rename, split), two) == [ItemCounted(name="a", count=1), ItemCounted(name="b", count=1)]
    assert read(known(split, drop), two) == []
    assert read(known(split), stored('{"names":[]}')) == []
    assert read(known(split, rename), stored('{"name":"c","count":5}', version=2)) == [ItemCounted(name="c", count=5)]


def test_all_events_that_one_is_read_as_have_its_place() -> None:
    """Stream version, id and metadata are those of the stored event."""
    event = stored('{"names":["a","b"]}')

    assert [recorded.stored for recorded in known(split).read(event)] == [event, event]


def as_tuple(old: ItemsAddedV1) -> tuple[ItemAdded, Noted]:
    """Two events of two types."""
    return ItemAdded(name=old.names[0]), Noted(text="split")


def as_many(old: ItemsAddedV1) -> tuple[ItemAdded | Noted, ...]:
    """As many as there are, of two types."""
    return (*(ItemAdded(name=name) for name in old.names), Noted())


def as_iterator(old: ItemsAddedV1) -> Iterator[ItemAdded]:
    """One after the other."""
    for name in old.names:
        yield ItemAdded(name=name)


def one_or_none(old: ItemsAddedV1) -> ItemAdded | None:
    """Perhaps none."""
    return ItemAdded(name=old.names[0]) if old.names else None


def one_or_several(old: ItemsAddedV1) -> Noted | Sequence[ItemAdded]:
    """Depends."""
    return [ItemAdded(name=name) for name in old.names] if old.names else Noted()


@pytest.mark.parametrize(
    ("upgrader", "some", "none"),
    [
        (as_tuple, [ItemAdded(name="a"), Noted(text="split")], None),
        (as_many, [ItemAdded(name="a"), ItemAdded(name="b"), Noted()], [Noted()]),
        (as_iterator, [ItemAdded(name="a"), ItemAdded(name="b")], []),
        (one_or_none, [ItemAdded(name="a")], []),
        (one_or_several, [ItemAdded(name="a"), ItemAdded(name="b")], [Noted()]),
    ],
)
def test_what_an_upgrader_returns_is_what_its_annotation_says(
    upgrader: Callable[..., Any], some: list[Event], none: list[Event] | None
) -> None:
    """Every way of saying one, several or none."""
    definitions = known(upgrader)

    assert read(definitions, stored('{"names":["a","b"]}')) == some
    assert none is None or read(definitions, stored('{"names":[]}')) == none
    assert definitions.results(ItemsAddedV1) <= {ItemAdded, Noted}


def forgetful(old: ItemsAddedV1) -> ItemAdded:  # pyright: ignore[reportReturnType]
    """Forgets to return."""


def another(old: ItemsAddedV1) -> ItemAdded:
    """Returns another type."""
    return Noted()  # pyright: ignore[reportReturnType]


def the_old_one(old: ItemsAddedV1) -> ItemAdded:
    """Would go round for ever."""
    return old  # pyright: ignore[reportReturnType]


def unasked(old: ItemsAddedV1) -> ItemAdded:
    """Returns several where one was said."""
    return [ItemAdded(name="a")]  # pyright: ignore[reportReturnType]


def mixed(old: ItemsAddedV1) -> list[ItemAdded]:
    """Returns something else among them."""
    return [ItemAdded(name="a"), "b"]  # pyright: ignore[reportReturnType]


def nothing(old: ItemsAddedV1) -> list[ItemAdded]:
    """Returns None where an empty list was said."""
    return None  # pyright: ignore[reportReturnType]


def failing(old: ItemsAddedV1) -> ItemAdded:
    """Fails."""
    return ItemAdded(name=old.names[7])


def failing_late(old: ItemsAddedV1) -> Iterator[ItemAdded]:
    """Fails on the way."""
    yield ItemAdded(name="a")
    raise ZeroDivisionError("no rate")


@pytest.mark.parametrize(
    ("upgrader", "said"),
    [
        (forgetful, "forgetful returned None"),
        (another, "another returned Noted"),
        (the_old_one, "the_old_one returned ItemsAddedV1"),
        (unasked, "unasked returned list"),
        (mixed, "mixed returned str among its events"),
        (nothing, "nothing returned None"),
        (failing, r"failing failed: IndexError\('list index out of range'\)"),
        (failing_late, r"failing_late failed: ZeroDivisionError\('no rate'\)"),
    ],
)
def test_upgrader_that_breaks_its_word_makes_the_event_unreadable(upgrader: Callable[..., Any], said: str) -> None:
    """No event is dropped, doubled or changed by mistake: the error names the stored event and the function."""
    with pytest.raises(UndecodableMessageError, match=f"stored 'ItemsAdded' v1 cannot be read: {said}"):
        read(known(upgrader), stored('{"names":["a"]}'))


def test_error_in_a_chain_carries_the_stored_name() -> None:
    """Not that of the step at which it failed."""

    def fail(old: ItemAdded) -> ItemCounted:
        raise ValueError("no")

    with pytest.raises(UndecodableMessageError, match=r"'ItemsAdded' v1 .*fail failed: ValueError\('no'\)"):
        read(known(split, fail), stored('{"names":["a"]}'))


def test_circle_of_upgraders_is_refused_when_the_flow_is_opened() -> None:
    """Also one that passes through a split; the error shows it."""

    def back(old: ItemCounted) -> ItemsAddedV1 | None:
        return None

    flow = EventFlow("circle")
    for upgrader in (split, rename, back):
        flow.upgrader(upgrader)

    with pytest.raises(DefinitionError, match="circle: ItemsAddedV1 → ItemAdded → ItemCounted → ItemsAddedV1"):
        flow.check()


def test_two_upgraders_of_an_event_are_refused_by_their_names() -> None:
    """The same function twice is once."""
    with pytest.raises(DefinitionError, match=r"ItemAdded has two upgraders, .*\.rename and .*\.drop; chain them"):
        known(rename, rename, drop)


def no_old(old) -> ItemAdded:  # pyright: ignore[reportUnknownParameterType, reportMissingParameterType]
    """Does not say what it reads."""
    raise NotImplementedError


def no_new(old: ItemsAddedV1):
    """Does not say what it returns."""


def two_old(old: ItemsAddedV1, other: ItemAdded) -> ItemAdded:
    """Reads too much."""
    raise NotImplementedError


def no_event(old: ItemsAddedV1) -> str:
    """Leads nowhere."""
    raise NotImplementedError


def list_of_others(old: ItemsAddedV1) -> list[ItemAdded | str]:
    """Leads partly nowhere."""
    raise NotImplementedError


def by_name(old: ItemsAddedV1) -> dict[str, ItemAdded]:
    """Whose events would be the keys."""
    raise NotImplementedError


async def awaiting(old: ItemsAddedV1) -> ItemAdded:
    """Would have to be awaited."""
    raise NotImplementedError


def hidden(old: ItemsAddedV1) -> "Fraction":
    """Leads to what exists for type checkers only."""
    raise NotImplementedError


MISSHAPEN: list[tuple[Callable[..., Any], str]] = [
    (no_old, "must"),  # pyright: ignore[reportUnknownArgumentType]
    (no_new, r"must be annotated as \(old: OldEvent\) -> NewEvent, or -> list\[NewEvent\]"),
    (two_old, "must be annotated"),
    (no_event, "must be annotated"),
    (list_of_others, "must be annotated"),
    (by_name, "must be annotated"),
    (awaiting, "must not be async"),
    (hidden, "name 'Fraction' .*TYPE_CHECKING"),
]


@pytest.mark.parametrize(("wrong", "said"), MISSHAPEN, ids=lambda value: getattr(value, "__name__", ""))
def test_upgrader_of_another_shape_is_refused_when_the_flow_is_opened(wrong: Callable[..., Any], said: str) -> None:
    """The error names the function and says what to write."""
    flow = EventFlow("wrong")
    flow.upgrader(wrong)

    with pytest.raises(InvalidHandlerError, match=f"{wrong.__name__}:? {said}"):
        flow.check()


def test_events_are_read_under_their_former_names() -> None:
    """An alias is a former name of the same version; new events carry the current one."""
    definitions = known(events=[ItemsAddedV1])

    assert read(definitions, stored('{"names":[]}', name="Added")) == [ItemsAddedV1(names=[])]
    assert definitions.encode(ItemsAddedV1(names=[]))[0].name == "ItemsAdded"


def test_two_events_under_one_name_are_refused() -> None:
    """By alias, too; the error names both classes."""

    @event_version("Added", 1)
    class Impostor(Event):
        pass

    with pytest.raises(DuplicateDefinitionError, match=r"ItemsAddedV1 and .*Impostor both claim the name 'Added' v1"):
        known(events=[ItemsAddedV1, Impostor])


@pytest.mark.parametrize(("name", "version"), [("Unknown", 1), ("ItemsAdded", 3), ("itemsadded", 1)])
def test_unknown_event_is_an_error_that_names_it(name: str, version: int) -> None:
    """It is not skipped: the state without it would be another."""
    with pytest.raises(UnknownEventDefinitionError, match=f"no event '{name}' v{version} is registered"):
        read(known(split), stored("{}", name=name, version=version))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ('{"names":["a",7]}', r"Expected `str`, got `int` - at `\$\.names\[1\]`"),
        ("{}", "missing required field `names`"),
        ("nonsense", "malformed"),
        ("", "truncated"),
    ],
)
def test_event_that_does_not_fit_its_type_is_refused_with_the_path(data: str, reason: str) -> None:
    """The error has the stored name and version, and where in the JSON the misfit is."""
    with pytest.raises(UndecodableMessageError, match=f"(?i)stored 'ItemsAdded' v1 cannot be read: .*{reason}"):
        read(known(split), stored(data))
