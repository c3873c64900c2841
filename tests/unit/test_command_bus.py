"""The command bus and its handlers."""

import functools
import threading
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
import pytest

from eventflow import (
    AnyCommand,
    CommandContext,
    CommandMiddleware,
    DatabaseUnavailableError,
    DomainError,
    DuplicateCommandHandlerError,
    EventFlow,
    InvalidHandlerError,
    InvalidMessageError,
    InvalidScheduleError,
    NoCommandHandlerError,
    ServiceNotFoundError,
    StandaloneCommand,
    UnknownJobDefinitionError,
)
from eventflow.commands import CallNext
from tests.unit.bench import Act, Bench, CancelOrder, OrderId, PlaceOrder, RebuildIndex
from tests.unit.test_definitions import Quiet

if TYPE_CHECKING:
    from fractions import Fraction

ORDER = OrderId.new()
HOUR = timedelta(hours=1)


def bench_of(*handlers: Callable[..., Any], middleware: tuple[CommandMiddleware, ...] = ()) -> Bench:
    """A bench whose flow has these handlers and this middleware."""
    flow = EventFlow("bus")
    for handler in handlers:
        flow.command_handler(handler)
    for function in middleware:
        flow.middleware(function)
    return Bench(flow)


async def place(command: PlaceOrder, context: CommandContext) -> int:
    """Answer with what was asked for."""
    return command.total_cents


async def place_too(command: PlaceOrder, context: CommandContext) -> int:
    """A second handler of the same command."""
    return 0


async def test_handler_is_called_once_and_its_result_returned() -> None:
    """Publishing runs the handler of the command's type once, with the command, and returns its typed result."""
    seen: list[PlaceOrder] = []

    async def handle(command: PlaceOrder, context: CommandContext) -> int:
        seen.append(command)
        return command.total_cents

    command = PlaceOrder(aggregate_id=ORDER, total_cents=42)

    assert await bench_of(handle).bus.publish(command) == 42
    assert seen == [command]


async def test_unregistered_command_with_a_handler_needs_no_more() -> None:
    """A command is known by its handler; it need not be named apart to be published or scheduled."""
    bench = bench_of(place)

    assert await bench.bus.publish(PlaceOrder(aggregate_id=ORDER, total_cents=1)) == 1
    assert bench.encoder.encode(PlaceOrder(aggregate_id=ORDER, total_cents=1)).version == 1


async def test_result_is_handed_over_as_it_is() -> None:
    """The caller gets the object that the handler returned, not one that was read back."""

    class Report(msgspec.Struct):
        pages: int

    class Ask(StandaloneCommand[Report]):
        pass

    report = Report(3)

    async def answer(command: Ask, context: CommandContext) -> Report:
        return report

    assert await bench_of(answer).bus.publish(Ask()) is report


@pytest.mark.parametrize("result", [None, 5, object(), float("nan")], ids=repr)
async def test_result_of_another_type_than_declared_is_refused(result: Any) -> None:
    """It is kept with the receipt, so it has to be what it says; nothing is written."""

    async def answer(command: RebuildIndex, context: CommandContext) -> str:
        context.schedule(RebuildIndex(), delay=HOUR)
        return result

    bench = bench_of(answer)
    command = RebuildIndex()
    with pytest.raises(InvalidMessageError):
        await bench.bus.publish(command)
    assert await bench.store.find() == []
    with pytest.raises(InvalidMessageError):  # and not: it was done already
        await bench.bus.publish(command)


async def test_bus_calls_a_handler_once_and_raises_what_it_raises() -> None:
    """No error is retried or wrapped on the way to the caller."""
    errors = [TimeoutError(), ConnectionResetError(), DatabaseUnavailableError()]
    raised: list[Exception] = []

    async def fail(command: RebuildIndex, context: CommandContext) -> str:
        raised.append(errors[command.shards])
        raise errors[command.shards]

    bench = bench_of(fail)
    for number, error in enumerate(errors):
        with pytest.raises(type(error)) as caught:
            await bench.bus.publish(RebuildIndex(shards=number))
        assert caught.value is error

    assert raised == errors


async def test_cancelled_handler_schedules_nothing() -> None:
    """Cancelling the caller cancels the handler where it waits, and what it scheduled is dropped."""
    waiting = anyio.Event()

    async def hang(command: CancelOrder, context: CommandContext) -> None:
        context.schedule(Act())
        waiting.set()
        await anyio.sleep_forever()

    bench = bench_of(hang)
    async with anyio.create_task_group() as group:
        group.start_soon(bench.bus.publish, CancelOrder(aggregate_id=ORDER))
        await waiting.wait()
        group.cancel_scope.cancel()

    assert await bench.store.find() == []


async def test_command_without_a_handler_is_an_error() -> None:
    """A command that nobody handles is an error that names it; another type's handler does not serve a subclass."""

    class PlaceGift(PlaceOrder):
        pass

    bench = bench_of(place)

    with pytest.raises(NoCommandHandlerError, match="CancelOrder has no handler"):
        await bench.bus.publish(CancelOrder(aggregate_id=ORDER))
    with pytest.raises(NoCommandHandlerError, match="PlaceGift has no handler"):
        await bench.bus.publish(PlaceGift(aggregate_id=ORDER, total_cents=1))


def test_two_handlers_of_a_command_are_refused() -> None:
    """Two functions for one command are an error that names both, before anything runs."""
    with pytest.raises(DuplicateCommandHandlerError) as caught:
        bench_of(place, place_too)

    assert caught.value.handlers == (f"{__name__}.place", f"{__name__}.place_too")
    assert "PlaceOrder has more than one handler" in str(caught.value)


def test_same_handler_twice_is_once() -> None:
    """A function registered again changes nothing."""
    assert len(list(bench_of(place, place).model.handlers)) == 1


def no_command(command: int, context: CommandContext) -> None:
    """Takes something else."""


def no_context(command: CancelOrder) -> None:
    """Takes too little."""


def three(command: CancelOrder, context: CommandContext, extra: int) -> None:
    """Takes too much."""


def wrong_context(command: CancelOrder, context: str) -> None:
    """Takes another context."""


def wrong_result(command: PlaceOrder, context: CommandContext) -> str:
    """Returns another type than the command declares."""
    return ""


def missing_result(command: PlaceOrder, context: CommandContext) -> None:
    """Returns nothing where the command declares an int."""


def silent(command: CancelOrder, context: CommandContext):
    """Does not say what it returns."""


def untyped(command, context):  # pyright: ignore[reportUnknownParameterType, reportMissingParameterType]
    """Says nothing."""


def under_type_checking(command: CancelOrder, context: CommandContext) -> "Fraction":
    """Names what does not exist at run time."""
    raise NotImplementedError


MISSHAPEN: list[tuple[Callable[..., Any], str]] = [
    (no_command, "must be annotated"),
    (no_context, "must be annotated"),
    (three, "must be annotated"),
    (wrong_context, "last parameter must be a CommandContext"),
    (wrong_result, "returns str, but PlaceOrder declares int"),
    (missing_result, "returns NoneType, but PlaceOrder declares int"),
    (silent, "returns nothing"),
    (untyped, "must be annotated"),  # pyright: ignore[reportUnknownArgumentType]
    (under_type_checking, "TYPE_CHECKING"),
]


@pytest.mark.parametrize(("handler", "said"), MISSHAPEN)
def test_handler_of_another_shape_is_refused(handler: Callable[..., Any], said: str) -> None:
    """A handler whose annotations do not fit is an error that names the function and what is wrong."""
    with pytest.raises(InvalidHandlerError, match=f"{handler.__name__}.*{said}"):
        bench_of(handler)


def test_handler_that_is_no_function_is_refused() -> None:
    """A partial has no annotations of its own to read: a typed error, not an accident."""
    with pytest.raises(InvalidHandlerError, match="partial"):
        bench_of(functools.partial(three, extra=1))


async def test_plain_function_runs_in_a_thread() -> None:
    """A handler without async runs beside the event loop, and its result and errors come back."""
    threads: list[int] = []

    def cancel(command: CancelOrder, context: CommandContext) -> None:
        threads.append(threading.get_ident())
        if len(threads) == 2:
            raise DomainError("too late")

    bench = bench_of(cancel)

    await bench.bus.publish(CancelOrder(aggregate_id=ORDER))
    with pytest.raises(DomainError, match="too late"):
        await bench.bus.publish(CancelOrder(aggregate_id=ORDER))

    assert threading.get_ident() not in threads


async def test_function_that_hands_on_a_coroutine_is_awaited() -> None:
    """A decorated handler may be a plain function around an async one; its work is done, not dropped."""
    done: list[int] = []

    def decorated(function: Callable[..., Awaitable[int]]) -> Callable[..., Awaitable[int]]:
        @functools.wraps(function)
        def call(*arguments: Any) -> Awaitable[int]:
            return function(*arguments)

        return call

    @decorated
    async def handle(command: PlaceOrder, context: CommandContext) -> int:
        done.append(command.total_cents)
        return 7

    assert await bench_of(handle).bus.publish(PlaceOrder(aggregate_id=ORDER, total_cents=3)) == 7
    assert done == [3]


def noting(name: str, notes: list[str]) -> CommandMiddleware:
    """Middleware that writes down when it begins and ends."""

    async def around(command: AnyCommand[Any], context: CommandContext, call_next: CallNext) -> Any:
        notes.append(f"{name} in")
        try:
            return await call_next(command)
        finally:
            notes.append(f"{name} out")

    return around


async def test_middleware_goes_around_in_the_order_of_registration() -> None:
    """The first middleware registered is the outermost, on success and on failure."""
    notes: list[str] = []

    async def handle(command: PlaceOrder, context: CommandContext) -> int:
        notes.append("handler")
        if command.total_cents < 0:
            raise DomainError("negative")
        return command.total_cents

    bench = bench_of(handle, middleware=(noting("first", notes), noting("second", notes)))
    order = ["first in", "second in", "handler", "second out", "first out"]

    assert await bench.bus.publish(PlaceOrder(aggregate_id=ORDER, total_cents=1)) == 1
    with pytest.raises(DomainError):
        await bench.bus.publish(PlaceOrder(aggregate_id=ORDER, total_cents=-1))

    assert notes == order * 2


async def test_middleware_may_answer_itself() -> None:
    """Middleware that does not go on keeps the handler and all inner middleware from running."""
    notes: list[str] = []

    async def answer(command: AnyCommand[Any], context: CommandContext, call_next: CallNext) -> Any:
        return 99

    bench = bench_of(place, middleware=(noting("outer", notes), answer, noting("inner", notes)))

    assert await bench.bus.publish(PlaceOrder(aggregate_id=ORDER, total_cents=1)) == 99
    assert notes == ["outer in", "outer out"]


async def test_middleware_may_change_the_command_and_the_result() -> None:
    """The handler gets the command that middleware passes on, and the caller the result it returns."""

    async def double(command: AnyCommand[Any], context: CommandContext, call_next: CallNext) -> Any:
        assert isinstance(command, PlaceOrder)
        changed = PlaceOrder(aggregate_id=command.aggregate_id, total_cents=10, source_id=command.source_id)
        return 2 * await call_next(changed)

    bench = bench_of(place, middleware=(double,))

    assert await bench.bus.publish(PlaceOrder(aggregate_id=ORDER, total_cents=1)) == 20


async def test_domain_error_reaches_the_caller() -> None:
    """A handler's refusal is raised as it is, with all it says."""

    async def refuse(command: CancelOrder, context: CommandContext) -> None:
        raise DomainError("already shipped", "already paid")

    with pytest.raises(DomainError) as caught:
        await bench_of(refuse).bus.publish(CancelOrder(aggregate_id=ORDER))

    assert caught.value.errors == ("already shipped", "already paid")
    assert str(caught.value) == "already shipped; already paid"


async def test_follow_ups_are_written_when_the_handler_succeeds() -> None:
    """What a handler schedules is stored after it returned, as part of the command's story."""
    bench: Bench

    async def handle(command: CancelOrder, context: CommandContext) -> None:
        context.schedule(Act(number=1), delay=timedelta(hours=1))
        context.schedule(command)
        assert await bench.store.find() == []

    bench = bench_of(handle)
    command = CancelOrder(aggregate_id=ORDER)

    await bench.bus.publish(command)

    records = await bench.store.find()
    assert {record.name for record in records} == {"Act", "PublishCommand:CancelOrder"}
    assert all(
        record.headers == {"correlation_id": command.source_id, "causation_id": command.source_id} for record in records
    )


@pytest.mark.parametrize("error", [DomainError("no"), ValueError("bug"), KeyboardInterrupt()], ids=repr)
async def test_failed_handler_schedules_nothing(error: BaseException) -> None:
    """Whatever ends a handler early, nothing that it scheduled before is stored."""

    async def handle(command: CancelOrder, context: CommandContext) -> None:
        context.schedule(Act())
        raise error

    bench = bench_of(handle)

    with pytest.raises(type(error)):
        await bench.bus.publish(CancelOrder(aggregate_id=ORDER))

    assert await bench.store.find() == []


async def test_follow_up_is_checked_where_it_is_scheduled() -> None:
    """A handler that schedules what cannot be stored gets the error at that line."""
    caught: list[type[Exception]] = []

    async def handle(command: CancelOrder, context: CommandContext) -> None:
        for wrong, delay in (
            (Act(number="x"), timedelta(0)),  # pyright: ignore[reportArgumentType] - not checked when made
            (Quiet(), timedelta(0)),
            (Act(), timedelta(-1)),
        ):
            try:
                context.schedule(wrong, delay=delay)
            except Exception as exc:  # noqa: BLE001 - which one is the question
                caught.append(type(exc))

    bench = bench_of(handle)
    await bench.bus.publish(CancelOrder(aggregate_id=ORDER))

    assert caught == [InvalidMessageError, UnknownJobDefinitionError, InvalidScheduleError]
    assert await bench.store.find() == []


async def test_handler_gets_services_and_the_commands_identity() -> None:
    """The context has the registered services, and the source id of the command."""

    class Mailer:
        pass

    mailer, seen = Mailer(), list[Any]()

    async def handle(command: RebuildIndex, context: CommandContext) -> str:
        seen.extend([await context.services.aget(Mailer), context.source_id, context.correlation_id])
        return "done"

    bench = bench_of(handle)
    bench.services.register_value(Mailer, mailer)
    command = RebuildIndex()

    assert await bench.bus.publish(command) == "done"
    assert seen == [mailer, command.source_id, command.source_id]


async def test_unknown_service_is_an_error_that_names_it() -> None:
    """A handler that asks for what nobody registered is told so."""

    async def handle(command: RebuildIndex, context: CommandContext) -> str:
        return str(await context.services.aget(int))

    with pytest.raises(ServiceNotFoundError, match="no service int is registered"):
        await bench_of(handle).bus.publish(RebuildIndex())
