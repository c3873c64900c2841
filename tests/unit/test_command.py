"""Commands: fields, results, and source ids that follow from content."""

from collections.abc import Iterable
from typing import Any, Generic, TypeVar

import msgspec
import pytest

from eventflow import (
    AnyCommand,
    Command,
    DistinctCommand,
    Identity,
    InvalidMessageError,
    SourceId,
    StandaloneCommand,
    UndecodableMessageError,
    command_version,
)
from eventflow.commands import CommandDefinitions, result_type
from tests.unit.bench import CancelOrder, OrderId, Ping, PlaceOrder, RebuildIndex, ThingyId

T = TypeVar("T")

ORDER = OrderId("order-0192f0c1-7d3e-7cc1-8f4a-2b1d6f0e9a55")
OTHER_ORDER = OrderId("order-0192f0c1-7d3e-7cc1-8f4a-2b1d6f0e9a56")


class Pay(DistinctCommand[OrderId]):
    """A distinct command with ids of the default kind."""

    invoice: str

    def source_id_components(self) -> Iterable[bytes]:
        yield self.invoice.encode()


class Refund(DistinctCommand[OrderId]):
    """Another one with the same components."""

    invoice: str

    def source_id_components(self) -> Iterable[bytes]:
        yield self.invoice.encode()


class Vague(DistinctCommand[OrderId]):
    """A distinct command that nothing tells apart."""

    def source_id_components(self) -> Iterable[bytes]:
        return ()


class UmlautId(Identity, prefix="bestellungä"):
    """An identity with a letter that is not ASCII."""


@command_version("Bestätige")
class Confirm(Command[UmlautId]):
    """A command with one in its stored name."""

    text: str


class Bare(StandaloneCommand):
    """A command without a type argument."""


class Page(Command[OrderId, T], Generic[T]):
    """A generic command."""


class IntPage(Page[int]):
    """A command whose result is bound in its base."""


@pytest.mark.parametrize(
    ("aggregate_id", "number", "expected"),
    [
        ("thingy-4b1e7b48-18f1-4215-91d9-903cffdab3d8", 1, "command-40867fe4-94da-59e4-9bb5-e532f6565751"),
        ("thingy-4b1e7b48-18f1-4215-91d9-903cffdab3d8", 2, "command-df0e238e-676b-500e-b962-76fcef97768a"),
        ("thingy-6a2a04bd-bbc8-44ac-80ac-b0ca56897bc0", 2, "command-0455a861-bc9e-56c5-b7b9-5c14671db8b2"),
    ],
)
def test_exact_source_id_is_eventflows(aggregate_id: str, number: int, expected: str) -> None:
    """With exact_source_id, the source id is the one that EventFlow (.NET) computes."""
    assert Ping(aggregate_id=ThingyId(aggregate_id), number=number).source_id == expected


def test_same_request_has_the_same_source_id() -> None:
    """Two distinct commands with equal content are one operation."""
    first = Pay(aggregate_id=ORDER, invoice="2030-1")
    second = Pay(aggregate_id=ORDER, invoice="2030-1")

    assert first.source_id == second.source_id
    assert first.source_id != Pay(aggregate_id=ORDER, invoice="2030-2").source_id


def test_command_type_and_aggregate_tell_requests_apart() -> None:
    """Equal components of another command type, or for another aggregate, are another operation."""
    ids = {
        Pay(aggregate_id=ORDER, invoice="2030-1").source_id,
        Refund(aggregate_id=ORDER, invoice="2030-1").source_id,
        Pay(aggregate_id=OTHER_ORDER, invoice="2030-1").source_id,
    }

    assert len(ids) == 3


def test_stored_name_and_not_the_class_name_makes_the_source_id() -> None:
    """A renamed class that keeps its stored name keeps its source ids."""

    @command_version("Pay")
    class Settle(DistinctCommand[OrderId]):
        invoice: str

        def source_id_components(self) -> Iterable[bytes]:
            yield self.invoice.encode()

    assert Settle(aggregate_id=ORDER, invoice="1").source_id == Pay(aggregate_id=ORDER, invoice="1").source_id


def test_no_components_is_an_error() -> None:
    """A distinct command that gives nothing to tell it by cannot be made."""
    with pytest.raises(ValueError, match=r"Vague\.source_id_components\(\) gave nothing"):
        Vague(aggregate_id=ORDER)


def test_given_source_id_stands() -> None:
    """A source id given by the caller is not computed over."""
    assert Pay(aggregate_id=ORDER, invoice="1", source_id=SourceId("mine")).source_id == "mine"


@pytest.mark.parametrize(
    "command",
    [
        Pay(aggregate_id=ORDER, invoice="1"),
        Ping(aggregate_id=ThingyId.new(), number=3),
        PlaceOrder(aggregate_id=ORDER, total_cents=1),
        RebuildIndex(shards=4),
    ],
    ids=lambda command: type(command).__name__,
)
def test_json_keeps_data_source_id_and_aggregate_id(command: AnyCommand[object]) -> None:
    """A command comes back from JSON equal, with its source id and aggregate id."""
    definitions = CommandDefinitions()
    definition = definitions.add(type(command))

    _, data = definitions.encode(command)
    decoded = definitions.decode(definition.name, 1, data)

    assert decoded == command
    assert decoded.source_id == command.source_id


def test_letters_of_any_script_survive() -> None:
    """A stored name, an identity's prefix and a text keep their letters."""
    command = Confirm(aggregate_id=UmlautId.new(), text="åßπ 注文 😀 \u0301")
    definitions = CommandDefinitions()
    definitions.add(Confirm)

    definition, data = definitions.encode(command)

    assert definition.name == "Bestätige"
    assert command.aggregate_id.startswith("bestellungä-")
    assert definitions.decode("Bestätige", 1, data) == command


def test_stored_command_without_source_id_is_refused() -> None:
    """A stored command whose source id is missing is not given a new one: it could not be told from a duplicate."""
    definitions = CommandDefinitions()
    definitions.add(PlaceOrder)

    with pytest.raises(UndecodableMessageError, match="source_id"):
        definitions.decode("PlaceOrder", 1, f'{{"aggregate_id":"{ORDER}","total_cents":1}}')


def test_each_command_is_an_operation_of_its_own() -> None:
    """Two commands with equal fields have different source ids, and so differ."""
    first, second = CancelOrder(aggregate_id=ORDER), CancelOrder(aggregate_id=ORDER)

    assert first.source_id != second.source_id
    assert first != second


def test_commands_are_frozen_and_keyword_only() -> None:
    """A command's fields are given by keyword and never change."""
    command = PlaceOrder(aggregate_id=ORDER, total_cents=1)

    with pytest.raises(AttributeError):
        command.total_cents = 2  # pyright: ignore[reportAttributeAccessIssue] - it is frozen
    with pytest.raises(TypeError):
        PlaceOrder(ORDER, 1)  # pyright: ignore[reportCallIssue] - they are keyword-only


def test_replacing_a_field_keeps_the_source_id() -> None:
    """A copy with another field is still the same operation."""
    command = Pay(aggregate_id=ORDER, invoice="1")

    assert msgspec.structs.replace(command, invoice="2").source_id == command.source_id


@pytest.mark.parametrize(
    ("command_type", "expected"),
    [
        (PlaceOrder, int),
        (CancelOrder, type(None)),
        (RebuildIndex, str),
        (Ping, type(None)),
        (Bare, type(None)),
        (IntPage, Any),
    ],
)
def test_declared_result_is_read_from_the_base(command_type: type[AnyCommand[object]], expected: object) -> None:
    """What publish returns is the last type argument, None if there is none."""
    assert result_type(command_type) is expected


def test_declared_result_is_inherited() -> None:
    """A command derived from another declares the same result."""

    class PlaceGift(PlaceOrder):
        note: str = ""

    assert result_type(PlaceGift) is int


def test_boundaries_between_components_tell_requests_apart() -> None:
    """("1", "12") and ("11", "2") are different requests."""

    class Move(DistinctCommand[OrderId]):
        source: str
        target: str

        def source_id_components(self) -> Iterable[bytes]:
            return self.source.encode(), self.target.encode()

    first, second = (Move(aggregate_id=ORDER, source=s, target=t) for s, t in (("1", "12"), ("11", "2")))
    assert first.source_id != second.source_id


def test_a_distinct_command_that_hides_its_source_id_is_refused() -> None:
    """A __post_init__ without super() would give all its commands one source id."""

    class Hidden(DistinctCommand[OrderId]):
        def __post_init__(self) -> None:
            pass

        def source_id_components(self) -> Iterable[bytes]:
            return (b"x",)

    definitions = CommandDefinitions()
    definitions.add(Hidden)
    with pytest.raises(InvalidMessageError, match="must call super"):
        definitions.encode(Hidden(aggregate_id=ORDER))
