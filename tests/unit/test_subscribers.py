"""Subscribers and sagas, in memory: which jobs follow from events, and what such a job does."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from eventflow import (
    Aggregate,
    App,
    Command,
    CommandContext,
    DatabaseUnavailableError,
    DefinitionError,
    DomainError,
    Event,
    EventFlow,
    Identity,
    InvalidHandlerError,
    Job,
    JobContext,
    JobState,
    ManualClock,
    RetryPolicy,
    Saga,
    SubscriberContext,
    applies,
    handles,
    starts_with,
)
from eventflow.clock import Clock
from eventflow.eventstore import InMemoryEventStore, StoredEvent

ONCE = RetryPolicy(max_attempts=1)
LATER = timedelta(hours=1)


class OrderId(Identity):
    """Of an order, and of what follows it."""


class Placed(Event):
    """It was placed."""

    number: int


class Paid(Event):
    """Somebody paid for an order."""

    order_id: OrderId | None


class Closed(Event):
    """It is done with."""


class Order(Aggregate[OrderId]):
    """Emits what it is told to."""

    events: int = 0

    @applies
    def _happened(self, event: Placed | Paid | Closed) -> None:
        self.events += 1


class Emit(Command[OrderId]):
    """Emit so many events of each kind."""

    placed: int = 0
    paid_for: OrderId | None = None
    pays: bool = False
    closes: bool = False


class Told(Job):
    """What a subscriber schedules."""

    number: int

    async def execute(self, context: JobContext) -> None: ...


def shop(*subscribers: Callable[..., Any], **options: Any) -> EventFlow:
    """A flow with orders and these subscribers, all with the same options."""
    flow = EventFlow("shop")
    flow.add_jobs(Told)

    @flow.command_handler
    async def emit(order: Order, command: Emit, context: CommandContext) -> None:
        for number in range(command.placed):
            order.emit(Placed(number=number))
        if command.pays:
            order.emit(Paid(order_id=command.paid_for))
        if command.closes:
            order.emit(Closed())

    for subscriber in subscribers:
        flow.subscriber(**options)(subscriber)
    return flow


@asynccontextmanager
async def opened(flow: EventFlow, clock: Clock | None = None) -> AsyncGenerator[App]:
    """The flow in memory."""
    async with flow.open("memory:", clock=clock or ManualClock()) as app:
        yield app


async def test_each_event_is_a_job_for_each_subscriber_that_wants_it() -> None:
    """Of its type, of one of a union, or of all; written with the event, caused by it, in its story."""
    seen: list[tuple[str, str]] = []

    async def one(event: Placed, context: SubscriberContext) -> None:
        seen.append(("one", type(event).__name__))

    async def two(event: Placed | Closed, context: SubscriberContext) -> None:
        seen.append(("two", type(event).__name__))

    def everything(event: Event, context: SubscriberContext) -> None:
        seen.append(("everything", type(event).__name__))

    async with opened(shop(one, two, everything)) as app:
        order, command = OrderId.new(), Emit(aggregate_id=OrderId.new(), placed=1, pays=True, closes=True)
        await app.commands.publish(Emit(aggregate_id=order))
        assert await app.jobs.find() == []
        await app.commands.publish(command)
        jobs = await app.jobs.find()
        assert await app.run_due() == len(jobs) == 6
        page = await app.events.read_all()

        names = ("one", "Placed"), ("two", "Placed"), ("two", "Closed")
        assert sorted(seen) == sorted([*names, *(("everything", name) for name in ("Placed", "Paid", "Closed"))])
        assert {job.headers["correlation_id"] for job in jobs} == {command.source_id}
        assert {job.headers["causation_id"] for job in jobs} == {event.id for event in page.events}


async def test_subscriber_that_fails_is_tried_again_alone() -> None:
    """What it scheduled comes with its success; the other subscriber runs once; at last it is a dead letter."""
    seen: list[tuple[str, int]] = []

    async def good(event: Placed, context: SubscriberContext) -> None:
        seen.append(("good", context.attempt))

    async def bad(event: Placed, context: SubscriberContext) -> None:
        seen.append(("bad", context.attempt))
        context.schedule(Told(number=context.attempt), delay=LATER)
        if context.attempt < 2 or event.number == 1:
            raise ValueError("not yet")

    clock = ManualClock()
    async with opened(shop(good, bad, retry=RetryPolicy(max_attempts=2)), clock) as app:
        await app.commands.publish(Emit(aggregate_id=OrderId.new(), placed=2))
        await app.run_due()
        clock.advance(LATER / 2)
        await app.run_due()
        [told] = await app.jobs.find(name="Told")
        [dead] = await app.jobs.find(state=JobState.DEAD)

        assert sorted(seen) == [("bad", 1)] * 2 + [("bad", 2)] * 2 + [("good", 1)] * 2
        assert told.payload == {"number": 2}
        assert dead.name == "Subscriber:bad"


async def test_poisoned_event_holds_up_its_own_aggregate_and_subscriber_only() -> None:
    """In order: what comes after it waits; other aggregates and subscribers go on."""
    seen: list[tuple[str, str, int]] = []
    poisoned, healthy = OrderId.new(), OrderId.new()

    async def careful(event: Placed, context: SubscriberContext) -> None:
        if context.aggregate_id == poisoned and context.stream_version == 2:
            raise ValueError("poison")
        seen.append(("careful", context.aggregate_id, context.stream_version))

    async def other(event: Placed, context: SubscriberContext) -> None:
        seen.append(("other", context.aggregate_id, context.stream_version))

    async with opened(shop(careful, other, ordered=True, retry=ONCE)) as app:
        for order in (poisoned, healthy):
            for _ in range(2):
                await app.commands.publish(Emit(aggregate_id=order, placed=2))
                await app.run_due()
        [dead] = await app.jobs.find(state=JobState.DEAD)

        assert dead.name == "Subscriber:careful"
        for who, order, versions in (
            ("careful", poisoned, [1]),
            ("careful", healthy, [1, 2, 3, 4]),
            ("other", poisoned, [1, 2, 3, 4]),
            ("other", healthy, [1, 2, 3, 4]),
        ):
            assert [version for w, o, version in seen if (w, o) == (who, order)] == versions


@pytest.mark.parametrize("raises", [False, True])
async def test_errors_of_inline_subscribers_are_logged_or_raised(
    raises: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """After the commit, which stays; the others are told all the same, in order, and nothing is a job."""
    seen: list[str] = []

    async def first(event: Placed, context: SubscriberContext) -> None:
        seen.append("first")
        raise ValueError("no")

    async def second(event: Placed, context: SubscriberContext) -> None:
        seen.append("second")
        context.schedule(Told(number=1))

    flow = shop(first, second, inline=True)
    flow.raise_inline_errors = raises
    async with opened(flow) as app:
        order = OrderId.new()
        if raises:
            with pytest.raises(ExceptionGroup) as raised:
                await app.commands.publish(Emit(aggregate_id=order, placed=1))
            assert [str(error) for error in raised.value.exceptions] == ["no"]
        else:
            await app.commands.publish(Emit(aggregate_id=order, placed=1))
        assert "subscriber.failed" in caplog.messages
        assert seen == ["first", "second"]
        assert (await app.aggregates.load(Order, order)).events == 1
        assert [job.name for job in await app.jobs.find()] == ["Told"]


async def test_command_is_done_though_its_events_cannot_be_read_for_inline_subscribers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its caller would publish it again if told that the database is away."""

    async def note(event: Placed, context: SubscriberContext) -> None:
        raise AssertionError("there is nothing to see")

    async def load(*_: object, **__: object) -> Sequence[StoredEvent]:
        raise DatabaseUnavailableError("too many clients")

    async with opened(shop(note, inline=True)) as app:
        order = OrderId.new()
        with monkeypatch.context() as away:
            away.setattr(InMemoryEventStore, "load", load)
            await app.commands.publish(Emit(aggregate_id=order, placed=1))
        assert (await app.aggregates.load(Order, order)).events == 1

    assert "subscriber.failed" in caplog.messages


async def test_events_are_seen_once_in_order_where_jobs_run_at_once() -> None:
    """Those of one append, each as a job."""
    seen: list[int] = []

    def note(event: Placed, context: SubscriberContext) -> None:
        seen.append(context.stream_version)

    async with shop(note, ordered=True).open("instant:") as app:
        await app.commands.publish(Emit(aggregate_id=OrderId.new(), placed=3))
    assert seen == [1, 2, 3]


def test_subscribers_that_cannot_work_are_refused_when_the_flow_is_opened() -> None:
    """The message names the function, or the name that two share."""

    async def no_context(event: Placed) -> None: ...

    async def no_event(event: int, context: SubscriberContext) -> None: ...

    async def fine(event: Placed, context: SubscriberContext) -> None: ...

    for wrong in (no_context, no_event):
        with pytest.raises(InvalidHandlerError, match=wrong.__name__):
            shop(wrong).check()
    twice = shop(fine)

    @twice.subscriber(name="fine")
    async def other(event: Placed, context: SubscriberContext) -> None: ...

    with pytest.raises(DefinitionError, match="two subscribers are called 'fine'"):
        twice.check()


class Noted(Event):
    """The saga has seen something."""

    what: str


class Following(Saga[OrderId]):
    """Follows an order until it is closed."""

    seen: list[str] = []

    @starts_with
    async def placed(self, event: Placed, context: CommandContext) -> None:
        self.emit(Noted(what=f"placed {event.number}"))
        context.schedule(Told(number=event.number))
        if event.number == 7:
            raise DomainError("seven")

    @handles(by="order_id")
    async def paid(self, event: Paid, context: CommandContext) -> None:
        self.emit(Noted(what="paid"))

    @handles()
    async def closed(self, event: Closed, context: CommandContext) -> None:
        self.complete()

    @applies
    def _noted(self, event: Noted) -> None:
        self.seen.append(event.what)


def shop_with_saga() -> EventFlow:
    """Orders, and the saga that follows them."""
    flow = shop()
    flow.saga(retry=ONCE)(Following)
    return flow


async def test_saga_follows_what_concerns_it_from_its_start_to_its_end() -> None:
    """Routed by the aggregate's id or by a field; before its start and after its end events are passed over."""
    order, payer = OrderId.new(), OrderId.new()
    async with opened(shop_with_saga()) as app:
        for command in (
            Emit(aggregate_id=payer, pays=True, paid_for=order),  # nothing has begun
            Emit(aggregate_id=order, placed=2),
            Emit(aggregate_id=payer, pays=True, paid_for=order),
            Emit(aggregate_id=payer, pays=True, paid_for=None),  # concerns nobody
            Emit(aggregate_id=order, closes=True),
            Emit(aggregate_id=payer, pays=True, paid_for=order),  # too late
        ):
            await app.commands.publish(command)
            await app.run_due()
        saga = await app.aggregates.load(Following, order)

        assert saga.seen == ["placed 0", "placed 1", "paid"]
        assert saga.is_completed
        assert (await app.aggregates.load(Following, payer)).is_new
        assert [job.payload for job in await app.jobs.find(name="Told")] == [{"number": 1}, {"number": 0}]
        assert await app.jobs.find(state=JobState.DEAD) == []


async def test_saga_that_fails_leaves_neither_events_nor_commands() -> None:
    """It is a failure of that job; a DomainError is not tried again."""
    order = OrderId.new()
    async with opened(shop_with_saga()) as app:
        await app.commands.publish(Emit(aggregate_id=order, placed=8))
        await app.run_due()

        [dead] = await app.jobs.find(state=JobState.DEAD)
        saga = await app.aggregates.load(Following, order)
        assert dead.payload["stream_version"] == 8
        assert saga.seen == [f"placed {number}" for number in range(7)]
        assert len(await app.jobs.find(name="Told")) == 7


async def test_event_that_is_delivered_again_changes_nothing() -> None:
    """The saga's operation is the event's id."""
    order = OrderId.new()
    async with opened(shop_with_saga()) as app:
        await app.commands.publish(Emit(aggregate_id=order, placed=1))
        [job] = await app.jobs.find(name="Subscriber:Following")
        await app.run_due()
        [subscription] = app._model.subscriptions
        again = subscription.job_type(aggregate_name="Order", aggregate_id=order, stream_version=1, event="Placed")
        await app.jobs.schedule(again)
        assert await app.run_due() == 1
        saga = await app.aggregates.load(Following, order)
        [placed, noted] = (await app.events.read_all()).events

        assert (saga.seen, noted.metadata.source_id) == (["placed 0"], placed.id)
        assert noted.metadata.job_id == job.id
        assert await app.jobs.find(state=JobState.DEAD) == []


def test_saga_that_handles_nothing_or_an_unknown_field_is_refused() -> None:
    """When the flow is opened, or where the field is named."""

    class Deaf(Saga[OrderId]):
        pass

    class Lost(Saga[OrderId]):
        @handles(by="customer")
        async def paid(self, event: Paid, context: CommandContext) -> None: ...

    for saga, said in ((Deaf, "handles no events"), (Lost, "has no field 'customer'")):
        flow = shop()
        flow.saga(saga)
        with pytest.raises(InvalidHandlerError, match=said):
            flow.check()
