"""Command handlers: which shapes are refused at the start, and which values when a command is published."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from eventflow import (
    Aggregate,
    CommandContext,
    DuplicateCommandHandlerError,
    EventFlow,
    Identity,
    InvalidHandlerError,
    InvalidMessageError,
    NoCommandHandlerError,
    StandaloneCommand,
    applies,
)
from tests.unit.bench import PlaceOrder, RebuildIndex
from tests.unit.contended import ORDER, PayOrder, bench_of, place, store_of
from tests.unit.test_aggregate import Order, OrderPlaced

if TYPE_CHECKING:
    from fractions import Fraction


async def test_command_without_handler_loads_nothing() -> None:
    """It is an error before anything is looked at."""
    bench = bench_of(place)

    with pytest.raises(NoCommandHandlerError, match="PayOrder has no handler"):
        await bench.bus.publish(PayOrder(aggregate_id=ORDER))

    assert store_of(bench).looks == 0


def test_two_handlers_of_a_command_are_refused_when_the_flow_is_opened() -> None:
    """With an aggregate or without; the error names both functions."""

    async def place_too(command: PlaceOrder, context: CommandContext) -> int:
        return 0

    flow = EventFlow("orders")
    flow.command_handler(place)
    flow.command_handler(place_too)

    with pytest.raises(DuplicateCommandHandlerError, match=r"contended\.place, .*place_too"):
        flow.open("memory:")


class CustomerId(Identity):
    """Of another aggregate."""


class Customer(Aggregate[CustomerId]):
    """It."""

    orders: int = 0

    @applies
    def _placed(self, event: OrderPlaced) -> None:
        self.orders += 1


async def of_another(customer: Customer, command: PlaceOrder, context: CommandContext) -> int:
    """Takes an aggregate that the command does not address."""
    raise NotImplementedError


async def of_none(order: Order, command: RebuildIndex, context: CommandContext) -> str:
    """Takes one where the command addresses none."""
    raise NotImplementedError


async def without_context(order: Order, command: PlaceOrder) -> int:
    """Takes too little."""
    raise NotImplementedError


async def with_another_context(order: Order, command: PlaceOrder, context: int) -> int:
    """Takes another context."""
    raise NotImplementedError


async def turned_round(command: PlaceOrder, order: Order, context: CommandContext) -> int:
    """Takes the right things in another order."""
    raise NotImplementedError


async def with_another_result(order: Order, command: PlaceOrder, context: CommandContext) -> str:
    """Returns something else."""
    raise NotImplementedError


async def of_checkers(order: Order, command: PlaceOrder, context: "Fraction") -> int:
    """Names what exists for type checkers only."""
    raise NotImplementedError


MISSHAPEN: list[tuple[Callable[..., Any], str]] = [
    (of_another, "PlaceOrder addresses OrderId, but Customer is identified by CustomerId"),
    (of_none, "RebuildIndex addresses no aggregate"),
    (without_context, r"must be annotated as \(aggregate: SomeAggregate, command: SomeCommand, context: CommandCo"),
    (with_another_context, "its last parameter must be a CommandContext"),
    (turned_round, "must be annotated as"),
    (with_another_result, "returns str, but PlaceOrder declares int"),
    (of_checkers, "name 'Fraction' is not defined; .*importable at run time, not only under TYPE_CHECKING"),
]


@pytest.mark.parametrize(("handler", "said"), MISSHAPEN)
def test_handler_of_another_shape_is_refused_when_the_flow_is_opened(handler: Callable[..., Any], said: str) -> None:
    """The error names the function and says what does not fit."""
    flow = EventFlow("wrong")
    flow.command_handler(handler)

    with pytest.raises(InvalidHandlerError, match=rf"test_command_handlers\.{handler.__name__}:? .*{said}|{said}"):
        flow.open("memory:")


async def test_aggregate_id_of_another_type_is_refused() -> None:
    """Nothing checks a command when it is made; the handler does not have to."""
    bench = bench_of(place)

    with pytest.raises(InvalidMessageError, match="PlaceOrder cannot be stored: aggregate_id"):
        await bench.bus.publish(PlaceOrder(aggregate_id=str.__str__(ORDER), total_cents=1))  # pyright: ignore[reportArgumentType]

    assert store_of(bench).tries == 0


async def test_field_of_another_type_is_refused_where_the_command_is_published() -> None:
    """As where it is scheduled: the handler does not run, and the error names the field."""
    bench = bench_of(place)
    command = PlaceOrder(aggregate_id=ORDER, total_cents="7")  # pyright: ignore[reportArgumentType]

    for attempt in (bench.bus.publish, bench.bus.preview):
        with pytest.raises(InvalidMessageError, match=r"PlaceOrder cannot be stored: .*\$\.total_cents"):
            await attempt(command)

    assert store_of(bench).looks == 0


class Ask(StandaloneCommand[int | None]):
    """Its result is one of two types."""


async def test_result_of_a_wrong_type_names_the_handler() -> None:
    """Also where the declared type is a union; nothing is stored."""

    async def answer(command: Ask, context: CommandContext) -> int | None:
        return "seven"  # pyright: ignore[reportReturnType]

    with pytest.raises(InvalidMessageError, match=r"Ask cannot be stored: .*answer returned 'seven': Expected `int"):
        await bench_of(answer).bus.publish(Ask())
