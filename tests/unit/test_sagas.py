"""Sagas: which events reach them, from the one that starts them to their completion."""

import pytest

from eventflow import Command, CommandContext, Event, EventFlow, JobState, SubscriberContext, handles, starts_with
from tests.unit.shop import (
    HOUR,
    CourierId,
    Deliver,
    Delivered,
    Delivery,
    Following,
    Mail,
    Noted,
    OrderId,
    Place,
    Placed,
    Withdraw,
    Withdrawn,
    flow_of,
    opened,
)


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
