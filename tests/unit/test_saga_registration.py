"""Sagas that are registered: those that cannot work are refused when the flow is opened."""

from typing import Any

import pytest

from eventflow import CommandContext, Event, InvalidHandlerError, Saga, SubscriberContext, handles, starts_with
from tests.unit.shop import CourierId, Delivered, Delivery, OrderId, Place, Placed, Withdrawn, flow_of


def test_two_handlers_of_an_event_are_refused_wherever_the_class_is() -> None:
    """Also of a class within a function."""

    class Within(Twice):
        @starts_with
        async def one(self, event: Placed, context: CommandContext) -> None: ...

        @handles()
        async def other(self, event: Placed, context: CommandContext) -> None: ...

    with pytest.raises(InvalidHandlerError, match=r"Within\.other: Placed is handled already"):
        flow_of(Within).check()


class Hired(Event):
    """A courier has begun."""

    courier_id: CourierId | None


class ByAnothersId(Saga[OrderId]):
    """A field that never has the id of such a saga."""

    @handles(by="courier_id")
    async def wrong(self, event: Hired, context: CommandContext) -> None: ...


class ByANumber(Saga[OrderId]):
    """One that is no text."""

    @handles(by="number")
    async def wrong(self, event: Placed, context: CommandContext) -> None: ...


class WithoutContext(Saga[OrderId]):
    """Takes too little."""

    @starts_with
    async def wrong(self, event: Placed) -> None: ...


class WithAnotherContext(Saga[OrderId]):
    """Takes the context of subscribers."""

    @starts_with
    async def wrong(self, event: Placed, context: SubscriberContext) -> None: ...


class WithoutEvent(Saga[OrderId]):
    """Takes a command where an event belongs."""

    @handles()
    async def wrong(self, event: Place, context: CommandContext) -> None: ...


class WithOneThatIsNone(Saga[OrderId]):
    """One of the union is no event."""

    @handles()
    async def wrong(self, event: Placed | int, context: CommandContext) -> None: ...


class WithoutAnnotations(Saga[OrderId]):
    """Says nothing."""

    @handles()
    async def wrong(self, event, context): ...  # pyright: ignore[reportMissingParameterType, reportUnknownParameterType]


class WithoutTheField(Saga[OrderId]):
    """One of two events has the field."""

    @handles(by="order_id")
    async def wrong(self, event: Delivered | Placed, context: CommandContext) -> None: ...


class Twice(Saga[OrderId]):
    """Two handlers of one event."""

    @starts_with
    async def right(self, event: Placed, context: CommandContext) -> None: ...

    @handles()
    async def wrong(self, event: Withdrawn | Placed, context: CommandContext) -> None: ...


class OfEverything(Saga[OrderId]):
    """Events without end."""

    @handles()
    async def wrong(self, event: Event, context: CommandContext) -> None: ...


class OfNothing(Saga[OrderId]):
    """No handlers."""


MISSHAPEN: list[tuple[type[Saga[Any]], str]] = [
    (WithoutContext, r"WithoutContext\.wrong must be annotated as \(self, event: SomeEvent, context: CommandContext"),
    (WithAnotherContext, r"WithAnotherContext\.wrong must be annotated as"),
    (WithoutEvent, r"WithoutEvent\.wrong must be annotated as"),
    (WithOneThatIsNone, r"WithOneThatIsNone\.wrong must be annotated as"),
    (WithoutAnnotations, r"WithoutAnnotations\.wrong must be annotated as"),
    (WithoutTheField, r"WithoutTheField\.wrong: Placed has no field 'order_id'"),
    (ByAnothersId, r"ByAnothersId\.wrong: Hired\.courier_id is no OrderId, nor any text"),
    (ByANumber, r"ByANumber\.wrong: Placed\.number is no OrderId, nor any text"),
    (Twice, r"Twice\.wrong: Placed is handled already"),
    (OfEverything, "Event is abstract"),
    (OfNothing, "OfNothing handles no events: mark methods with @handles"),
]


@pytest.mark.parametrize(("saga", "said"), MISSHAPEN, ids=lambda value: getattr(value, "__name__", ""))
def test_saga_that_cannot_work_is_refused_when_the_flow_is_opened(saga: type[Saga[Any]], said: str) -> None:
    """The error names the method or class, and says what does not fit."""
    flow = flow_of(saga)

    with pytest.raises(InvalidHandlerError, match=said):
        flow.open("memory:")


def test_saga_that_is_registered_twice_is_one() -> None:
    """As every definition: two modules may include the same flow."""
    flow = flow_of(Delivery)
    flow.saga(Delivery)

    assert [subscription.subscriber.name for subscription in flow.check().subscriptions] == ["Delivery"]
