"""A shop with orders, couriers and one saga that follows them, in memory, on a clock that tests advance."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from eventflow import (
    Aggregate,
    AnyCommand,
    App,
    Command,
    CommandContext,
    DomainError,
    Event,
    EventFlow,
    Identity,
    Job,
    JobContext,
    JobRecord,
    JobState,
    ManualClock,
    Saga,
    StoredEvent,
    StreamId,
    applies,
    handles,
    starts_with,
)

HOUR = timedelta(hours=1)


class OrderId(Identity):
    """Of an order, and of what follows it."""


class CourierId(Identity):
    """Of somebody who delivers many orders."""


class Placed(Event):
    """It was placed."""

    number: int = 0


class Withdrawn(Event):
    """It was withdrawn."""


class Delivered(Event):
    """A courier has delivered an order, or something else."""

    order_id: OrderId | None


class Order(Aggregate[OrderId]):
    """Emits what it is told to."""

    is_withdrawn: bool = False

    @applies
    def _placed(self, event: Placed) -> None: ...

    @applies
    def _withdrawn(self, event: Withdrawn) -> None:
        self.is_withdrawn = True


class Courier(Aggregate[CourierId]):
    """Too."""

    @applies
    def _delivered(self, event: Delivered) -> None: ...


class Place(Command[OrderId]):
    """Place it so many times."""

    times: int = 1


class Withdraw(Command[OrderId]):
    """Withdraw it, once."""


class Deliver(Command[CourierId]):
    """Deliver."""

    order_ids: list[OrderId | None]


class Mail(Job):
    """What a saga schedules."""

    text: str

    async def execute(self, context: JobContext) -> None: ...


class Noted(Event):
    """A saga has seen something."""

    what: str


class Following(Saga[OrderId]):
    """Base of the sagas here: knows what it has seen."""

    seen: list[str] = []

    def note(self, what: str) -> None:
        """Remember something."""
        self.emit(Noted(what=what))

    @applies
    def _noted(self, event: Noted) -> None:
        self.seen.append(event.what)


class Shop:
    """An open application with one saga, and what tests do with it."""

    def __init__(self, app: App, clock: ManualClock, saga: type[Following]) -> None:
        self.app = app
        self.clock = clock
        self._saga = saga

    async def publish(self, *commands: AnyCommand[Any]) -> None:
        """Publish them one after the other, and run what follows from each."""
        for command in commands:
            await self.app.commands.publish(command)
            await self.app.run_due()

    async def saga(self, order_id: OrderId) -> Any:  # Any: a saga of the test's own
        """The saga of an order, as it is stored."""
        return await self.app.aggregates.load(self._saga, order_id)

    async def own_events(self, order_id: OrderId) -> list[StoredEvent]:
        """What it has emitted."""
        return list(await self.app.events.load(StreamId(self._saga.__name__, order_id)))

    async def jobs(self, name: str, state: JobState | None = None) -> list[JobRecord]:
        """The jobs of this name."""
        return list(await self.app.jobs.find(name=name, state=state))

    async def deliver_again(self, order_id: OrderId, stream_version: int) -> None:
        """Have the saga deal with an event of an order as if for the first time."""
        [subscription] = self.app._model.subscriptions
        again = subscription.job_type(
            aggregate_name="Order", aggregate_id=order_id, stream_version=stream_version, event="Placed"
        )
        await self.app.jobs.schedule(again)
        assert await self.app.run_due() == 1


def flow_of(saga: type[Saga[Any]], **options: Any) -> EventFlow:
    """Orders, couriers, and a saga."""
    flow = EventFlow("shop")
    flow.add_jobs(Mail)

    @flow.command_handler
    async def place(order: Order, command: Place, context: CommandContext) -> None:
        for number in range(command.times):
            order.emit(Placed(number=number))

    @flow.command_handler
    async def withdraw(order: Order, command: Withdraw, context: CommandContext) -> None:
        if order.is_withdrawn:
            raise DomainError("it is withdrawn already")
        order.emit(Withdrawn())

    @flow.command_handler
    async def deliver(courier: Courier, command: Deliver, context: CommandContext) -> None:
        for order_id in command.order_ids:
            courier.emit(Delivered(order_id=order_id))

    flow.saga(**options)(saga)
    return flow


@asynccontextmanager
async def opened(saga: type[Following], flow: EventFlow | None = None, **options: Any) -> AsyncGenerator[Shop]:
    """The application, in memory."""
    clock = ManualClock()
    async with (flow or flow_of(saga, **options)).open("memory:", clock=clock) as app:
        yield Shop(app, clock, saga)


class Delivery(Following):
    """From the order to its delivery."""

    @starts_with
    async def placed(self, event: Placed, context: CommandContext) -> None:
        self.note(f"placed {event.number}")

    @handles()
    def withdrawn(self, event: Withdrawn, context: CommandContext) -> None:
        self.note("withdrawn")

    @handles(by="order_id")
    async def delivered(self, event: Delivered, context: CommandContext) -> None:
        self.note("delivered")
        self.complete()
