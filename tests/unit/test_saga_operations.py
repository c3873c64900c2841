"""Operations of sagas: each event once, with all that it schedules; a failure leaves nothing of it."""

import anyio.lowlevel
import pytest

from eventflow import (
    Aggregate,
    Command,
    CommandContext,
    Event,
    JobState,
    OnError,
    RetryPolicy,
    StreamId,
    WorkerSettings,
    applies,
    handles,
    starts_with,
)
from tests.unit.shop import (
    HOUR,
    CourierId,
    Deliver,
    Delivered,
    Delivery,
    Following,
    Mail,
    OrderId,
    Place,
    Placed,
    Withdraw,
    Withdrawn,
    flow_of,
    opened,
)


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
