"""The registry of stored messages: names, versions, aliases, upgraders."""

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from eventflow import (
    Command,
    DefinitionError,
    DuplicateDefinitionError,
    InvalidHandlerError,
    Job,
    JobContext,
    SourceId,
    StandaloneCommand,
    UndecodableMessageError,
    UnknownCommandDefinitionError,
    UnknownDefinitionError,
    UnknownJobDefinitionError,
    command_version,
    job_version,
)
from eventflow.commands import CommandDefinitions
from eventflow.definitions import Definitions, annotations_of
from eventflow.messages import Message
from tests.unit.bench import OrderId

if TYPE_CHECKING:
    from fractions import Fraction

ORDER = OrderId("order-0192f0c1-7d3e-7cc1-8f4a-2b1d6f0e9a55")


class Note(Message):
    """Any message."""

    text: str = ""


class Quiet(Job):
    """A job that does nothing."""

    async def execute(self, context: JobContext) -> None: ...


@job_version("Fancy", 42, aliases=["Plain", "Simple"])
class Named(Quiet):
    """A job with a stored name, and former ones."""


@job_version("Fancy", 43)
class NamedAnew(Quiet):
    """The next version of it."""


@job_version("Fancy", 42)
class Impostor(Quiet):
    """Claims the name and version of another."""


@job_version("Simple", 42)
class AliasImpostor(Quiet):
    """Claims the former name of another."""


class Unfinished(Job):
    """A job without execute."""


@command_version("Place", 1)
class PlaceV1(Command[OrderId, int]):
    """The first version."""

    euros: int


@command_version("Place", 2)
class PlaceV2(Command[OrderId, int]):
    """The second version."""

    cents: int


@command_version("Place", 3)
class Place(Command[OrderId, int]):
    """The newest version."""

    cents: int
    currency: str


def to_v2(old: PlaceV1) -> PlaceV2:
    """Forgets the source id and gives another aggregate: the framework puts both right."""
    return PlaceV2(aggregate_id=OrderId.new(), cents=old.euros * 100)


def to_v3(old: PlaceV2) -> Place:
    """The next step."""
    return Place(aggregate_id=old.aggregate_id, cents=old.cents, currency="EUR")


def jobs(*types: type[Job]) -> Definitions[Job]:
    """A registry of jobs."""
    made: Definitions[Job] = Definitions(Job, UnknownJobDefinitionError)
    for job_type in types:
        made.add(job_type)
    return made


STORED_V1 = f'{{"aggregate_id":"{ORDER}","source_id":"command-1","euros":7}}'


@pytest.mark.parametrize(
    ("job_type", "name", "version"), [(Quiet, "Quiet", 1), (Named, "Fancy", 42), (NamedAnew, "Fancy", 43)]
)
def test_definition_is_found_by_name_and_by_type(job_type: type[Job], name: str, version: int) -> None:
    """A type and its stored (name, version) lead to the same definition."""
    definitions = jobs(Quiet, Named, NamedAnew)

    found = definitions.by_name(name, version)

    assert (found.type, found.name, found.version) == (job_type, name, version)
    assert definitions.by_type(job_type) == found
    assert job_type in definitions


def test_definition_shows_name_version_and_type() -> None:
    """A definition reads as its name, version and where its type is."""
    assert str(jobs(Named).by_type(Named)) == f"Fancy v42 ({__name__}.Named)"


def test_versions_of_a_name_are_listed_in_order() -> None:
    """All versions of a name are found, ascending; an unknown name has none."""
    definitions = jobs(NamedAnew, Quiet, Named)

    assert [definition.type for definition in definitions.versions("Fancy")] == [Named, NamedAnew]
    assert definitions.versions("Unknown") == []


def test_all_definitions_are_listed_once() -> None:
    """Iteration gives each type once, aliases or not; an empty registry gives nothing."""
    assert {definition.type for definition in jobs(Named, Quiet)} == {Named, Quiet}
    assert list(jobs()) == []


@pytest.mark.parametrize(("name", "version"), [("Fancy", 41), ("fancy", 42), ("Unknown", 1), ("", 0)])
def test_unknown_name_or_version_is_an_error(name: str, version: int) -> None:
    """Looking up what nobody registered raises, with name and version; names are told apart by case."""
    with pytest.raises(UnknownJobDefinitionError, match="no job") as caught:
        jobs(Named).by_name(name, version)

    assert (caught.value.name, caught.value.version) == (name, version)
    assert isinstance(caught.value, LookupError)


def test_unknown_type_is_an_error() -> None:
    """A type that nobody registered cannot be encoded."""
    with pytest.raises(UnknownJobDefinitionError, match="'Fancy' v42"):
        jobs(Quiet).encode(Named())


def test_same_type_twice_is_once() -> None:
    """Registering a type again changes nothing."""
    definitions = jobs(Named, Named)

    assert len(list(definitions)) == 1
    assert definitions.add(Named) == definitions.by_type(Named)


@pytest.mark.parametrize(
    ("first", "second"), [(Named, Impostor), (Impostor, Named), (Named, AliasImpostor), (AliasImpostor, Named)]
)
def test_two_types_under_one_name_and_version_are_refused(first: type[Job], second: type[Job]) -> None:
    """Two types with one stored name and version, by alias too, are an error that names both."""
    with pytest.raises(DuplicateDefinitionError) as caught:
        jobs(first, second)

    assert caught.value.types == (first, second)
    assert first.__qualname__ in str(caught.value)
    assert second.__qualname__ in str(caught.value)


def test_refused_type_leaves_nothing_behind() -> None:
    """A type that was refused is not in the registry under any of its names."""
    definitions = jobs(AliasImpostor)

    with pytest.raises(DuplicateDefinitionError):
        definitions.add(Named)

    assert Named not in definitions
    assert list(definitions.names()) == [("Simple", 42)]


def test_aliases_are_read_and_the_name_is_written() -> None:
    """What is stored under a former name is read; new messages carry the current one."""
    definitions = jobs(Named)

    definition, data = definitions.encode(Named())

    assert (definition.name, definition.version) == ("Fancy", 42)
    assert all(definitions.decode(name, 42, data) == Named() for name in ("Fancy", "Plain", "Simple"))
    assert set(definitions.names()) == {("Fancy", 42), ("Plain", 42), ("Simple", 42)}


@pytest.mark.parametrize("wrong", [Note, int, "Named", None, Named(), Command[OrderId]], ids=repr)
def test_what_is_no_such_message_is_refused(wrong: Any) -> None:
    """Only classes of the right kind can be registered."""
    with pytest.raises(InvalidHandlerError, match="is not a subclass of Job"):
        jobs(wrong)


@pytest.mark.parametrize("abstract", [Job, Unfinished])
def test_abstract_types_are_refused(abstract: type[Job]) -> None:
    """A job that cannot be executed cannot be registered."""
    with pytest.raises(InvalidHandlerError, match=f"{abstract.__qualname__} is abstract"):
        jobs(abstract)


def test_job_that_redeclares_execute_as_abstract_is_refused() -> None:
    """Abstract is what has an abstract method, wherever in its ancestry."""

    class Vague(Quiet):
        @abstractmethod
        async def execute(self, context: JobContext) -> None: ...

    with pytest.raises(InvalidHandlerError, match="Vague is abstract"):
        jobs(Vague)


def test_class_name_that_cannot_be_stored_is_refused() -> None:
    """A class name longer than a stored name may be is an error that names the class."""
    endless = type("X" * 151, (Quiet,), {})

    with pytest.raises(InvalidHandlerError, match=r"X: .* is not a name"):
        jobs(endless)


def test_upgraders_chain_to_the_newest_type() -> None:
    """A stored old version is read, upgraded step by step, and arrives as the newest type."""
    definitions = CommandDefinitions()
    definitions.add_upgrader(to_v3)  # in any order
    definitions.add_upgrader(to_v2)
    definitions.check()

    upgraded = definitions.decode("Place", 1, STORED_V1)

    assert isinstance(upgraded, Place)
    assert (upgraded.cents, upgraded.currency) == (700, "EUR")
    assert definitions.current("Place", 1) is Place
    assert definitions.current("Place", 3) is Place


def test_upgraded_command_keeps_its_source_id_and_aggregate() -> None:
    """Whatever an upgrader makes, the command is still the same operation on the same aggregate."""
    definitions = CommandDefinitions()
    definitions.add_upgrader(to_v2)
    definitions.add_upgrader(to_v3)

    upgraded = definitions.decode("Place", 1, STORED_V1)

    assert isinstance(upgraded, Place)
    assert (upgraded.source_id, upgraded.aggregate_id) == (SourceId("command-1"), ORDER)


def test_newer_version_is_read_as_it_is() -> None:
    """What is stored in the newest version passes no upgrader."""
    definitions = CommandDefinitions()
    definitions.add_upgrader(to_v2)
    stored = PlaceV2(aggregate_id=ORDER, cents=5)

    _, data = definitions.encode(stored)

    assert definitions.decode("Place", 2, data) == stored


def test_circle_of_upgraders_is_refused() -> None:
    """Upgraders that lead back to where they began are an error that shows the circle."""

    def back(old: PlaceV2) -> PlaceV1:
        return PlaceV1(aggregate_id=old.aggregate_id, euros=old.cents // 100)

    definitions = CommandDefinitions()
    definitions.add_upgrader(to_v2)
    definitions.add_upgrader(back)

    with pytest.raises(DefinitionError, match="circle: PlaceV1 → PlaceV2 → PlaceV1"):
        definitions.check()


def test_upgrader_to_its_own_type_is_refused() -> None:
    """The shortest circle is one too."""

    def same(old: PlaceV1) -> PlaceV1:
        return old

    definitions = CommandDefinitions()
    definitions.add_upgrader(same)

    with pytest.raises(DefinitionError, match="circle: PlaceV1 → PlaceV1"):
        definitions.check()


def test_two_upgraders_of_one_type_are_refused() -> None:
    """One version has one successor; the same function twice is once."""

    def another(old: PlaceV1) -> Place:
        return Place(aggregate_id=old.aggregate_id, cents=0, currency="")

    definitions = CommandDefinitions()
    definitions.add_upgrader(to_v2)
    definitions.add_upgrader(to_v2)

    with pytest.raises(DefinitionError, match="PlaceV1 has two upgraders"):
        definitions.add_upgrader(another)


def no_annotations(old):  # pyright: ignore[reportUnknownParameterType, reportMissingParameterType]
    """An upgrader that says nothing."""
    return old  # pyright: ignore[reportUnknownVariableType]


def two_parameters(old: PlaceV1, extra: int) -> PlaceV2:
    """An upgrader that asks for too much."""
    raise NotImplementedError


def no_result(old: PlaceV1):
    """An upgrader that does not say where it leads."""


MISSHAPEN: list[Callable[..., Any]] = [no_annotations, two_parameters, no_result]  # pyright: ignore[reportUnknownVariableType]


@pytest.mark.parametrize("wrong", MISSHAPEN)
def test_upgrader_of_another_shape_is_refused(wrong: Callable[..., Any]) -> None:
    """An upgrader is annotated as (old: OldType) -> NewType; the error names the function."""
    with pytest.raises(InvalidHandlerError, match=f"{wrong.__name__} must be annotated"):
        CommandDefinitions().add_upgrader(wrong)


def test_failing_upgrader_is_an_undecodable_message() -> None:
    """An upgrader that raises makes the message unreadable, under its stored name and with the reason."""

    def fail(old: PlaceV1) -> PlaceV2:
        raise ZeroDivisionError("no rate")

    definitions = CommandDefinitions()
    definitions.add_upgrader(fail)

    with pytest.raises(UndecodableMessageError, match=r"'Place' v1 .*fail failed: ZeroDivisionError\('no rate'\)"):
        definitions.decode("Place", 1, STORED_V1)


@pytest.mark.parametrize("returned", [None, "text", PlaceV1(aggregate_id=ORDER, euros=1)], ids=["none", "text", "old"])
def test_upgrader_that_breaks_its_word_is_an_undecodable_message(returned: Any) -> None:
    """An upgrader that returns another type than it declares does not loop or crash the reader."""

    def lie(old: PlaceV1) -> PlaceV2:
        return returned

    definitions = CommandDefinitions()
    definitions.add_upgrader(lie)

    with pytest.raises(UndecodableMessageError, match=r"lie returned"):
        definitions.decode("Place", 1, STORED_V1)


def test_stored_command_without_source_id_is_refused_before_upgrading() -> None:
    """An upgrader never sees a command that has no identity."""
    definitions = CommandDefinitions()
    definitions.add_upgrader(to_v2)

    with pytest.raises(UndecodableMessageError, match=r"'Place' v1 .*source_id"):
        definitions.decode("Place", 1, f'{{"aggregate_id":"{ORDER}","euros":7}}')


def test_unknown_command_is_told_from_an_unknown_job() -> None:
    """Each kind of registry raises the error of its kind."""
    with pytest.raises(UnknownCommandDefinitionError, match="no command 'Place' v9"):
        CommandDefinitions().decode("Place", 9, "{}")
    assert issubclass(UnknownCommandDefinitionError, UnknownDefinitionError)


def test_undecodable_message_carries_its_stored_name() -> None:
    """The error of a misfit has the name and version under which it was stored, and the path."""
    definitions = CommandDefinitions()
    definitions.add(PlaceV1)

    with pytest.raises(UndecodableMessageError, match=r"\$\.euros") as caught:
        definitions.decode("Place", 1, STORED_V1.replace(":7}", ':"7"}'))

    assert (caught.value.name, caught.value.version) == ("Place", 1)


class Share(StandaloneCommand):
    """A command whose field's type exists for type checkers only."""

    part: "Fraction"


def divide(command: PlaceV1, other: "Fraction") -> None:
    """A function whose annotation exists for type checkers only."""


def test_type_that_exists_for_checkers_only_is_named() -> None:
    """A field whose type is importable only under TYPE_CHECKING is an error that names class and type."""
    definitions = CommandDefinitions()
    definitions.add(Share)

    with pytest.raises(DefinitionError, match=r"Share.*Fraction"):
        definitions.check()


def test_annotation_that_exists_for_checkers_only_is_named() -> None:
    """A function's annotation importable only under TYPE_CHECKING is an error that names both."""
    with pytest.raises(InvalidHandlerError, match=r"divide: name 'Fraction'.*TYPE_CHECKING"):
        annotations_of(divide)
