"""What users' code infers about commands: checked, never run.

An ignored error is one that the checker must find: an ignore that nothing needs is an error itself.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from eventflow import (
    AnyCommand,
    App,
    Command,
    CommandContext,
    EventFlow,
    Identity,
    JobId,
    SourceId,
    StandaloneCommand,
    command_version,
)


class OrderId(Identity):
    """An identity."""


class CustomerId(Identity):
    """Another identity."""


@command_version("PlaceOrder", 2, aliases=["BuyOrder"])
class PlaceOrder(Command[OrderId, int]):
    """A command with a result."""

    total_cents: int
    note: str = ""


class CancelOrder(Command[OrderId]):
    """A command without one."""


class RebuildIndex(StandaloneCommand[list[str]]):
    """A command that concerns no aggregate."""


class Ping(StandaloneCommand):
    """A command with nothing at all."""


async def publishing_returns_the_commands_result(app: App, order_id: OrderId) -> None:
    assert_type(await app.commands.publish(PlaceOrder(aggregate_id=order_id, total_cents=1)), int)
    assert_type(await app.commands.publish(RebuildIndex()), list[str])
    nothing: list[Awaitable[None]] = [
        app.commands.publish(CancelOrder(aggregate_id=order_id)),
        app.commands.publish(Ping()),
    ]
    something: Awaitable[int] = app.commands.publish(Ping())  # type: ignore[arg-type]
    assert nothing
    assert something


async def publishing_returns_nothing_else(app: App, order_id: OrderId) -> None:
    text: str = await app.commands.publish(PlaceOrder(aggregate_id=order_id, total_cents=1))  # type: ignore[arg-type]
    assert text


def fields_have_the_types_they_were_given(order_id: OrderId) -> None:
    command = PlaceOrder(aggregate_id=order_id, total_cents=1, source_id=SourceId("mine"))
    assert_type(command, PlaceOrder)
    assert_type(command.aggregate_id, OrderId)
    assert_type(command.source_id, SourceId)
    assert_type(command.total_cents, int)


def commands_are_keyword_only(order_id: OrderId) -> None:
    PlaceOrder(order_id, 1)  # type: ignore[call-arg, arg-type]


def commands_are_frozen(command: PlaceOrder) -> None:
    command.total_cents = 2  # type: ignore[misc]


def fields_are_checked(order_id: OrderId) -> None:
    PlaceOrder(aggregate_id=order_id)  # type: ignore[call-arg]
    PlaceOrder(aggregate_id=order_id, total_cents="1")  # type: ignore[arg-type]
    PlaceOrder(aggregate_id=order_id, total_cents=1, nonsense=1)  # type: ignore[call-arg]
    PlaceOrder(aggregate_id=CustomerId.new(), total_cents=1)  # type: ignore[arg-type]
    PlaceOrder(aggregate_id="order-1", total_cents=1)  # type: ignore[arg-type]


def identities_are_texts_of_their_own_type(text: str) -> None:
    assert_type(OrderId.new(), OrderId)
    assert_type(OrderId(text), OrderId)
    as_text: list[str] = [OrderId.new()]
    order_id: OrderId = text  # type: ignore[assignment]
    assert as_text
    assert order_id


async def scheduling_takes_one_way_to_say_when(app: App, command: PlaceOrder) -> None:
    assert_type(await app.commands.schedule(command), JobId)
    await app.commands.schedule(command, delay=timedelta(days=7), queue="slow", priority=2, tags=["a"], key="k")
    await app.commands.schedule(command, at=datetime.now(UTC), timeout=timedelta(seconds=5))
    await app.commands.schedule(command, delay=7)  # type: ignore[arg-type]
    await app.commands.schedule(command, dely=timedelta(1))  # type: ignore[call-arg]
    await app.commands.schedule("PlaceOrder")  # type: ignore[arg-type]


flow = EventFlow("shop")


@flow.command_handler
async def place_order(command: PlaceOrder, context: CommandContext) -> int:
    assert_type(context.source_id, SourceId)
    assert_type(context.schedule(CancelOrder(aggregate_id=command.aggregate_id), delay=timedelta(1)), JobId)
    context.schedule(command, delay="soon")  # type: ignore[arg-type]
    return command.total_cents


@flow.command_handler(queue="slow", priority=3, timeout=timedelta(seconds=30))
def cancel_order(command: CancelOrder, context: CommandContext) -> None:
    """A plain function is a handler too."""


async def decorated_handlers_stay_what_they_are(command: PlaceOrder, context: CommandContext) -> None:
    assert_type(await place_order(command, context), int)


def any_command_is_what_middleware_takes(command: PlaceOrder, ping: Ping) -> None:
    commands: list[AnyCommand[Any]] = [command, ping]
    answers_int: AnyCommand[int] = command
    answers_text: AnyCommand[str] = command  # type: ignore[assignment]
    assert commands
    assert answers_int
    assert answers_text
