"""Sagas: aggregates that follow the events of others, in memory."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio.lowlevel
import pytest

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
    InvalidHandlerError,
    Job,
    JobContext,
    JobRecord,
    JobState,
    ManualClock,
    OnError,
    RetryPolicy,
    Saga,
    StoredEvent,
    StreamId,
    SubscriberContext,
    WorkerSettings,
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


class Hired(Event):
    """A courier has begun."""

    courier_id: CourierId | None


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


async def test_what_came_before_the_start_is_passed_over_for_good() -> None:
    """It is not made up for when the saga begins, and leaves no trace of a saga before."""
    order = OrderId.new()
    async with opened(Delivery) as shop:
        await shop.publish(Withdraw(aggregate_id=order), Deliver(aggregate_id=CourierId.new(), order_ids=[order]))
        assert (await shop.saga(order)).is_new
        await shop.publish(Place(aggregate_id=order))

        assert (await shop.saga(order)).seen == ["placed 0"]
        assert {job.state for job in await shop.jobs("Subscriber:Delivery")} == {JobState.SUCCEEDED}


async def test_saga_begins_with_its_first_own_event() -> None:
    """A start that emits nothing is none: what does not start it is passed over still."""

    class Hesitant(Following):
        @starts_with
        async def placed(self, event: Placed, context: CommandContext) -> None:
            if event.number == 1:
                self.note("begun")

        @handles()
        async def withdrawn(self, event: Withdrawn, context: CommandContext) -> None:
            self.note("withdrawn")

    not_begun, begun = OrderId.new(), OrderId.new()
    async with opened(Hesitant) as shop:
        await shop.publish(Place(aggregate_id=not_begun), Place(aggregate_id=begun, times=2))
        await shop.publish(Withdraw(aggregate_id=not_begun), Withdraw(aggregate_id=begun))

        assert (await shop.saga(not_begun)).is_new
        assert (await shop.saga(begun)).seen == ["begun", "withdrawn"]


async def test_events_of_one_aggregate_reach_the_sagas_that_a_field_names() -> None:
    """Each its own; an event that names none concerns nobody, and one may start a saga."""

    class Tracking(Following):
        @handles(by="order_id", starts=True)
        async def delivered(self, event: Delivered, context: CommandContext) -> None:
            self.note("delivered")

    courier, orders = CourierId.new(), [OrderId.new(), OrderId.new()]
    async with opened(Tracking) as shop:
        await shop.publish(Deliver(aggregate_id=courier, order_ids=[orders[0], None, orders[1], orders[0]]))

        assert [(await shop.saga(order)).seen for order in orders] == [["delivered"] * 2, ["delivered"]]
        page = await shop.app.events.read_all()
        assert {event.stream.aggregate_id for event in page.events if event.name == "Noted"} == set(orders)
        assert [job.state for job in await shop.jobs("Subscriber:Tracking")] == [JobState.SUCCEEDED] * 4


@pytest.mark.parametrize("every", [None, 1], ids=["replayed", "snapshot"])
async def test_completed_saga_handles_nothing_any_more(every: int | None) -> None:
    """Nor does an event that starts it begin it anew; what its last handler did beside is done."""

    class Short(Following, snapshot_every=every):
        @starts_with
        async def placed(self, event: Placed, context: CommandContext) -> None:
            self.note("placed")

        @handles()
        async def withdrawn(self, event: Withdrawn, context: CommandContext) -> None:
            self.complete()
            self.note("withdrawn")
            context.schedule(Mail(text="goodbye"))

    order = OrderId.new()
    async with opened(Short) as shop:
        await shop.publish(Place(aggregate_id=order), Withdraw(aggregate_id=order), Place(aggregate_id=order, times=3))

        saga = await shop.saga(order)
        assert (saga.is_completed, saga.seen) == (True, ["placed", "withdrawn"])
        assert [event.name for event in await shop.own_events(order)] == ["Noted", "SagaCompleted", "Noted"]
        assert len(await shop.jobs("Mail")) == 1


@pytest.mark.parametrize("emits", [True, False])
async def test_event_that_is_delivered_again_changes_nothing(emits: bool) -> None:
    """The operation is the event's id: its handler does not run again; what it scheduled is there once."""
    runs: list[str] = []

    class Once(Following):
        @starts_with
        async def placed(self, event: Placed, context: CommandContext) -> None:
            runs.append(context.source_id)
            context.schedule(Mail(text="placed"))
            context.schedule_deadline("late", Withdraw(aggregate_id=self.id), delay=HOUR)
            if emits:
                self.note("placed")

    order = OrderId.new()
    async with opened(Once) as shop:
        await shop.publish(Place(aggregate_id=order))
        [deadline] = await shop.jobs("PublishCommand:Withdraw")
        await shop.deliver_again(order, 1)

        [placed] = await shop.app.events.load(StreamId("Order", order))
        assert runs == [placed.id]
        assert [event.metadata.source_id for event in await shop.own_events(order)] == [placed.id] * emits
        assert await shop.jobs("PublishCommand:Withdraw") == [deadline]
        assert len(await shop.jobs("Mail")) == 1
        assert [job.state for job in await shop.jobs("Subscriber:Once")] == [JobState.SUCCEEDED] * 2


class Careful(Following):
    """Schedules a mail, a command and a deadline, and emits or not."""

    @starts_with
    async def placed(self, event: Placed, context: CommandContext) -> None:
        context.schedule(Mail(text="placed"))
        context.schedule(Withdraw(aggregate_id=self.id), delay=2 * HOUR)
        context.schedule_deadline("delivery", Withdraw(aggregate_id=self.id), delay=HOUR)
        if event.number == 0:
            self.note("placed")

    @handles(by="order_id")
    async def delivered(self, event: Delivered, context: CommandContext) -> None:
        context.cancel_deadline("delivery")

    @handles()
    async def withdrawn(self, event: Withdrawn, context: CommandContext) -> None:
        self.note("withdrawn")


async def test_jobs_and_deadlines_come_about_with_the_sagas_events_or_without() -> None:
    """A handler that only schedules has done its part; one deadline replaces the one before."""
    order = OrderId.new()
    async with opened(Careful) as shop:
        await shop.publish(Place(aggregate_id=order, times=3))

        assert [event.name for event in await shop.own_events(order)] == ["Noted"]
        assert len(await shop.jobs("Mail")) == 3
        waiting = [job.due_at for job in await shop.jobs("PublishCommand:Withdraw", JobState.WAITING)]
        now = shop.clock.now()
        assert sorted(waiting) == [now + HOUR, *[now + 2 * HOUR] * 3]


@pytest.mark.parametrize("is_delivered", [False, True])
async def test_deadline_of_a_saga_comes_about_unless_it_is_cancelled(is_delivered: bool) -> None:
    """By a later event of another aggregate; its command reaches the order, whose event comes back to the saga."""
    order, courier = OrderId.new(), CourierId.new()
    async with opened(Careful) as shop:
        await shop.publish(Place(aggregate_id=order))
        if is_delivered:
            await shop.publish(Deliver(aggregate_id=courier, order_ids=[order]))
        shop.clock.advance(HOUR)
        await shop.app.run_due()

        assert (await shop.saga(order)).seen == ["placed", *(() if is_delivered else ("withdrawn",))]


async def test_what_a_saga_does_belongs_to_the_story_of_the_event() -> None:
    """Its events and jobs share the first command's story; each is caused by the job that dealt with the event."""
    seen: list[tuple[str, str]] = []

    class Telling(Following):
        @starts_with
        async def placed(self, event: Placed, context: CommandContext) -> None:
            self.note("placed")
            context.schedule(Mail(text="placed"))
            seen.append((context.source_id, context.correlation_id))

    command = Place(aggregate_id=OrderId.new())
    async with opened(Telling) as shop:
        await shop.publish(command)
        placed, noted = (await shop.app.events.read_all()).events
        [job] = await shop.jobs("Subscriber:Telling")
        [mail] = await shop.jobs("Mail")

        assert seen == [(placed.id, command.source_id)]
        assert job.headers["causation_id"] == placed.id
        assert {noted.metadata.correlation_id, mail.headers["correlation_id"]} == {command.source_id}
        assert (noted.metadata.causation_id, noted.metadata.job_id) == (job.id, job.id)
        assert mail.headers["causation_id"] == job.id


@pytest.mark.parametrize("failures", [1, 2])
async def test_handler_that_fails_is_tried_again_as_any_job(failures: int) -> None:
    """
    A failed attempt leaves nothing; the next sees the saga as it was; the last is followed by the dead letters.

    The events behind it wait for it, in its own line alone: of this order. Others go on, also for the same saga.
    """
    attempts: list[list[str]] = []

    class Shaky(Following):
        @starts_with
        async def placed(self, event: Placed, context: CommandContext) -> None:
            self.note(f"placed {event.number}")
            context.schedule(Mail(text=f"{event.number}"))
            context.schedule_deadline(f"{event.number}", Withdraw(aggregate_id=self.id), delay=24 * HOUR)
            if self.id == order and event.number == 1:
                attempts.append(list(self.seen))
                if len(attempts) <= failures:
                    raise ConnectionResetError

        @handles(by="order_id")
        async def delivered(self, event: Delivered, context: CommandContext) -> None:
            self.note("delivered")

    order, other = OrderId.new(), OrderId.new()
    async with opened(Shaky, retry=RetryPolicy(max_attempts=2)) as shop:
        await shop.publish(
            Place(aggregate_id=order, times=3),
            Place(aggregate_id=other, times=3),
            Deliver(aggregate_id=CourierId.new(), order_ids=[order]),
        )
        assert (await shop.saga(order)).seen == ["placed 0", "delivered"]
        assert (await shop.saga(other)).seen == ["placed 0", "placed 1", "placed 2"]
        shop.clock.advance(HOUR)
        await shop.app.run_due()

        dead = await shop.jobs("Subscriber:Shaky", JobState.DEAD)
        after = ["placed 1", "placed 2"] if failures == 1 else []
        assert attempts == [["placed 0", "placed 1"], ["placed 0", "delivered", "placed 1"]]
        assert (await shop.saga(order)).seen == ["placed 0", "delivered", *after]
        assert [job.payload["stream_version"] for job in dead] == [2] * (failures - 1)
        assert len(await shop.jobs("Mail")) == len(await shop.jobs("PublishCommand:Withdraw")) == 4 + len(after)


async def test_error_that_is_to_be_ignored_passes_over_its_event_alone() -> None:
    """By the saga's own rules, as for any job: what comes behind it goes on."""

    class Lenient(Following):
        @starts_with
        async def placed(self, event: Placed, context: CommandContext) -> None:
            self.note(f"placed {event.number}")
            if event.number == 1:
                raise LookupError

    order = OrderId.new()
    async with opened(Lenient, retry=RetryPolicy(on={LookupError: OnError.IGNORE})) as shop:
        await shop.publish(Place(aggregate_id=order, times=3))

        assert (await shop.saga(order)).seen == ["placed 0", "placed 2"]


async def test_events_of_many_aggregates_at_once_make_one_saga() -> None:
    """Each is dealt with once, on what those before have made of it, and none of them as a failure."""

    class Counting(Following):
        @handles(by="order_id", starts=True)
        async def delivered(self, event: Delivered, context: CommandContext) -> None:
            number = len(self.seen)
            await anyio.lowlevel.checkpoint()  # others would get in between here
            self.note(f"{number}")

    order, couriers = OrderId.new(), [CourierId.new() for _ in range(10)]
    async with opened(Counting) as shop:
        for courier in couriers:
            await shop.app.commands.publish(Deliver(aggregate_id=courier, order_ids=[order, order]))
        async with shop.app.worker(WorkerSettings(concurrency=10)):
            while any(job.ended_at is None for job in await shop.jobs("Subscriber:Counting")):
                shop.clock.advance(0.01)
                await anyio.lowlevel.checkpoint()

        assert (await shop.saga(order)).seen == [f"{number}" for number in range(20)]
        assert await shop.jobs("Subscriber:Counting", JobState.DEAD) == []
        assert {len(job.past_attempts) for job in await shop.jobs("Subscriber:Counting")} == {0}


async def test_refused_command_does_not_undo_the_saga_that_scheduled_it() -> None:
    """It is a dead letter of its own; the saga has gone on, and goes on."""

    class Insisting(Following):
        @starts_with
        async def placed(self, event: Placed, context: CommandContext) -> None:
            self.note("placed")
            for _ in range(2):
                context.schedule(Withdraw(aggregate_id=self.id))

        @handles()
        async def withdrawn(self, event: Withdrawn, context: CommandContext) -> None:
            self.note("withdrawn")

    order = OrderId.new()
    async with opened(Insisting) as shop:
        await shop.publish(Place(aggregate_id=order))

        [dead] = await shop.app.jobs.find(state=JobState.DEAD)
        assert (dead.name, dead.error and dead.error["message"]) == (
            "PublishCommand:Withdraw",
            "it is withdrawn already",
        )
        assert (await shop.saga(order)).seen == ["placed", "withdrawn"]


async def test_saga_may_follow_its_own_events() -> None:
    """They are events like any others, in order; its completion ends it."""

    class CountingDown(Following):
        @starts_with
        async def placed(self, event: Placed, context: CommandContext) -> None:
            for what in ("3", "9"):
                self.note(what)

        @handles()
        async def noted(self, event: Noted, context: CommandContext) -> None:
            number = int(event.what)
            if number == 0:
                self.complete()
            elif number < 9:
                self.note(f"{number - 1}")

    order = OrderId.new()
    async with opened(CountingDown) as shop:
        await shop.publish(Place(aggregate_id=order))

        saga = await shop.saga(order)
        assert (saga.seen, saga.is_completed) == (["3", "9", "2", "1", "0"], True)
        assert [job.state for job in await shop.jobs("Subscriber:CountingDown")] == [JobState.SUCCEEDED] * 6


async def test_sagas_and_subscribers_follow_the_events_of_a_saga() -> None:
    """Also its end, which is an event of its own."""
    seen: list[tuple[str, str]] = []

    async def listen(event: Event, context: SubscriberContext) -> None:
        seen.append((context.aggregate_name, type(event).__name__))

    flow, order = flow_of(Delivery), OrderId.new()
    flow.subscriber(ordered=True)(listen)
    async with opened(Delivery, flow) as shop:
        await shop.publish(Place(aggregate_id=order), Deliver(aggregate_id=CourierId.new(), order_ids=[order]))

    assert [name for aggregate, name in seen if aggregate == "Delivery"] == ["Noted", "Noted", "SagaCompleted"]


@pytest.mark.parametrize("is_first", [True, False], ids=["before", "after"])
async def test_command_may_address_a_saga(is_first: bool) -> None:
    """It is an aggregate, whichever is registered first: its deadlines may come to itself."""

    class GiveUp(Command[OrderId]):
        pass

    class Patient(Following):
        @starts_with
        async def placed(self, event: Placed, context: CommandContext) -> None:
            self.note("placed")
            context.schedule_deadline("patience", GiveUp(aggregate_id=self.id), delay=HOUR)

    async def give_up(saga: Patient, command: GiveUp, context: CommandContext) -> None:
        saga.complete()

    flow, order = EventFlow("shop"), OrderId.new()
    if is_first:
        flow.command_handler(give_up)
    flow.include(flow_of(Patient))
    included = EventFlow("handler")
    included.command_handler(give_up)
    flow.include(included)
    async with opened(Patient, flow) as shop:
        await shop.publish(Place(aggregate_id=order))
        assert not (await shop.saga(order)).is_completed
        shop.clock.advance(HOUR)
        await shop.app.run_due()

        assert (await shop.saga(order)).is_completed


async def test_saga_inherits_what_its_base_handles() -> None:
    """And its own handler of an event goes before that of its base."""

    class Quick(Delivery):
        @handles()
        async def gone(self, event: Withdrawn, context: CommandContext) -> None:
            self.complete()

    order = OrderId.new()
    async with opened(Quick) as shop:
        await shop.publish(Place(aggregate_id=order), Withdraw(aggregate_id=order))

        saga = await shop.saga(order)
        assert (saga.seen, saga.is_completed) == (["placed 0"], True)


async def test_event_that_is_read_as_several_is_one_operation_of_the_saga() -> None:
    """What an upgrader makes of it is handled in order, and written at once; the first part may start the saga."""

    class Bundled(Event):
        count: int

    class Bundle(Aggregate[OrderId]):
        @applies
        def _bundled(self, event: Bundled) -> None: ...

        @applies
        def _parts(self, event: Placed | Withdrawn) -> None: ...

    class Pack(Command[OrderId]):
        pass

    async def pack(bundle: Bundle, command: Pack, context: CommandContext) -> None:
        bundle.emit(Bundled(count=2))

    def split(event: Bundled) -> list[Placed | Withdrawn]:
        return [*(Placed(number=number) for number in range(event.count)), Withdrawn()]

    flow, order = flow_of(Delivery), OrderId.new()
    flow.command_handler(pack)
    flow.upgrader(split)
    async with opened(Delivery, flow) as shop:
        await shop.publish(Pack(aggregate_id=order))

        assert (await shop.saga(order)).seen == ["placed 0", "placed 1", "withdrawn"]
        assert len({event.metadata.source_id for event in await shop.own_events(order)}) == 1
        assert [job.state for job in await shop.jobs("Subscriber:Delivery")] == [JobState.SUCCEEDED]


async def test_method_that_overrides_a_handler_takes_its_place() -> None:
    """Marked again or not; one that is marked for another event does not handle the former any more."""

    class Plain(Delivery):
        async def placed(self, event: Placed, context: CommandContext) -> None:
            self.note("overridden")

    class Other(Delivery):
        @starts_with
        async def placed(self, event: Delivered, context: CommandContext) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            self.note("another")

    order = OrderId.new()
    for saga, seen in ((Plain, ["overridden"]), (Other, [])):
        async with opened(saga) as shop:
            await shop.publish(Place(aggregate_id=order))
            assert (await shop.saga(order)).seen == seen


def test_two_handlers_of_an_event_are_refused_wherever_the_class_is() -> None:
    """Also of a class within a function."""

    class Within(Twice):
        @starts_with
        async def one(self, event: Placed, context: CommandContext) -> None: ...

        @handles()
        async def other(self, event: Placed, context: CommandContext) -> None: ...

    with pytest.raises(InvalidHandlerError, match=r"Within\.other: Placed is handled already"):
        flow_of(Within).check()


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
