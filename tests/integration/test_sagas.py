"""Sagas on Postgres: one operation for each event, with all that it schedules in its commit."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta

import anyio
import pytest

from eventflow import (
    Aggregate,
    App,
    Command,
    CommandContext,
    Event,
    EventFlow,
    Identity,
    JobState,
    RetryPolicy,
    Saga,
    Services,
    StreamId,
    WorkerSettings,
    applies,
    handles,
)
from eventflow.postgres import Connection
from tests.support.waiting import eventually, until

HOUR = timedelta(hours=1)
NOW = timedelta(0)
SWEEPING = WorkerSettings(tick_interval=0.1)
"""A worker that finds what nobody told it of within a tenth of a second."""


class OrderId(Identity):
    """Of an order, and of the saga that follows it."""


class CourierId(Identity):
    """Of somebody who delivers."""


class Picked(Event):
    """A courier has something of an order."""

    order_id: OrderId
    what: str


class Remembered(Event):
    """What the saga knows then."""

    what: str


class Reminded(Event):
    """The order was asked about."""


class Courier(Aggregate[CourierId]):
    """Emits what it is told to."""

    @applies
    def _picked(self, event: Picked) -> None: ...


class Order(Aggregate[OrderId]):
    """Counts how often it was asked about."""

    reminders: int = 0

    @applies
    def _reminded(self, event: Reminded) -> None:
        self.reminders += 1


class Pick(Command[CourierId]):
    """Pick these, one after the other."""

    order_id: OrderId
    what: list[str]


class Remind(Command[OrderId]):
    """Ask about an order."""


class Hall:
    """Where the saga waits, and what goes wrong there."""

    def __init__(self) -> None:
        self.handled: list[str] = []
        self.held: dict[str, anyio.Event] = {}

    async def enter(self, what: str) -> None:
        """The saga handles an event."""
        self.handled.append(what)
        if what in self.held:
            await self.held[what].wait()
        if what == "broken":
            raise ValueError(what)


class Tracking(Saga[OrderId]):
    """Follows an order through the hands of its couriers; what it does depends on what is picked."""

    seen: list[str] = []

    @handles(by="order_id", starts=True)
    async def picked(self, event: Picked, context: CommandContext) -> None:
        if event.what == "command":
            context.schedule(Remind(aggregate_id=self.id), delay=HOUR)
        if event.what == "early":
            context.schedule_deadline("late", Remind(aggregate_id=self.id), delay=NOW)
        if event.what == "set":
            context.schedule_deadline("late", Remind(aggregate_id=self.id), delay=HOUR)
        if event.what == "cancel":
            context.cancel_deadline("late")
        self.emit(Remembered(what=event.what))
        await (await context.services.aget(Hall)).enter(event.what)

    @applies
    def _remembered(self, event: Remembered) -> None:
        self.seen.append(event.what)


def flow_of(hall: Hall) -> EventFlow:
    """Couriers, orders and the saga."""

    @asynccontextmanager
    async def lifespan(services: Services) -> AsyncGenerator[None]:
        services.register_value(Hall, hall)
        yield

    flow = EventFlow("delivery", lifespan=lifespan)
    flow.saga(retry=RetryPolicy(max_attempts=1))(Tracking)

    @flow.command_handler
    async def pick(courier: Courier, command: Pick, context: CommandContext) -> None:
        for what in command.what:
            courier.emit(Picked(order_id=command.order_id, what=what))

    @flow.command_handler
    async def remind(order: Order, command: Remind, context: CommandContext) -> None:
        order.emit(Reminded())

    return flow


@pytest.fixture
def hall() -> Hall:
    """The saga's."""
    return Hall()


@pytest.fixture
def order() -> OrderId:
    """An order."""
    return OrderId.new()


async def pick(app: App, order: OrderId, *what: str, by: CourierId | None = None) -> CourierId:
    """Have a courier pick these; returns who."""
    courier = by or CourierId.new()
    await app.commands.publish(Pick(aggregate_id=courier, order_id=order, what=list(what)))
    return courier


async def all_is_done(admin: Connection) -> None:
    """Wait until the saga has nothing to do; dead letters stay."""
    left = """
    SELECT NOT EXISTS (SELECT FROM eventflow.running)
        AND NOT EXISTS (SELECT FROM eventflow.job WHERE name = 'Subscriber:Tracking')
        AND NOT EXISTS (
            SELECT FROM eventflow.event_line WHERE job_id NOT IN (SELECT id FROM eventflow.dead_letter))
    """
    await eventually(lambda: admin.fetchval(left))


async def seen(app: App, order: OrderId) -> list[str]:
    """What the saga of an order knows."""
    return (await app.aggregates.load(Tracking, order)).seen


async def test_events_of_two_aggregates_at_the_same_time_are_both_applied_once(
    dsn: str, admin: Connection, hall: Hall, order: OrderId
) -> None:
    """In two workers: who comes second finds the saga changed, and handles its event again on what it is then."""
    one_at_a_time = WorkerSettings(concurrency=1)
    hall.held = {"left": anyio.Event(), "right": anyio.Event()}
    async with (
        flow_of(hall).open(dsn) as here,
        flow_of(hall).open(dsn) as there,
        here.worker(one_at_a_time),
        there.worker(one_at_a_time),
    ):
        await pick(here, order, "left")
        await pick(here, order, "right")
        await until(lambda: sorted(hall.handled) == ["left", "right"])
        for gate in hall.held.values():
            gate.set()
        await all_is_done(admin)

        assert sorted(await seen(here, order)) == ["left", "right"]
        assert len(hall.handled) == 3
        ends = await here.jobs.find(name="Subscriber:Tracking")
        assert [(job.state, job.attempt) for job in ends] == [(JobState.SUCCEEDED, 1)] * 2


async def test_what_a_saga_schedules_is_in_its_commit(dsn: str, admin: Connection, hall: Hall, order: OrderId) -> None:
    """Its events, the command's job, the deadline with its job, its receipt, its step in line, and the job's end."""
    hall.held = {"stop": anyio.Event()}
    async with flow_of(hall).open(dsn) as app, app.worker():
        await pick(app, order, "command", "set", "stop")
        await until(lambda: "stop" in hall.handled)
        rows = await admin.fetch(
            """
            SELECT tableoid::regclass::text AS kind, xmin::text FROM eventflow.event WHERE name = 'Remembered'
            UNION ALL SELECT 'receipt', xmin::text FROM eventflow.command_receipt WHERE scope = 'Tracking'
            UNION ALL SELECT 'completion', xmin::text FROM eventflow.job_history WHERE name = 'Subscriber:Tracking'
            UNION ALL SELECT 'command', xmin::text FROM eventflow.job WHERE name = 'PublishCommand:Remind'
            UNION ALL SELECT 'deadline', xmin::text FROM eventflow.deadline
            UNION ALL SELECT 'line', xmin::text FROM eventflow.event_line
            """
        )
        by_commit: dict[str, set[str]] = {}
        for row in rows:
            by_commit.setdefault(row["xmin"], set()).add(row["kind"])
        hall.held["stop"].set()
        await all_is_done(admin)
    always = {"eventflow.event", "receipt", "completion", "command"}
    assert sorted(by_commit.values(), key=len) == [always, always | {"deadline", "line"}]


async def test_event_that_is_delivered_again_changes_nothing(
    dsn: str, admin: Connection, hall: Hall, order: OrderId
) -> None:
    """Its job comes again after it was forgotten: no event, no command, no receipt more; nothing runs."""
    counts = """
    SELECT (SELECT count(*) FROM eventflow.event), (SELECT count(*) FROM eventflow.command_receipt),
        (SELECT count(*) FROM eventflow.any_job), (SELECT count(*) FROM eventflow.event_line)
    """
    async with flow_of(hall).open(dsn) as app, app.worker(SWEEPING):
        await pick(app, order, "command", "plain")
        await all_is_done(admin)
        before = await admin.fetchrow(counts)
        assert await admin.fetch(
            """
            WITH forgotten AS (
                DELETE FROM eventflow.job_history WHERE name = 'Subscriber:Tracking' RETURNING *
            )
            INSERT INTO eventflow.job (id, queue_id, due_at, ready_at, name, version, payload, headers)
            SELECT id, queue_id, now(), now(), name, version, payload, headers FROM forgotten RETURNING id
            """
        )
        await all_is_done(admin)
        again = await app.jobs.find(name="Subscriber:Tracking")

        assert [(job.state, job.attempt) for job in again] == [(JobState.SUCCEEDED, 1)] * 2
        assert await admin.fetchrow(counts) == before
        assert await seen(app, order) == hall.handled == ["command", "plain"]


async def test_deadline_of_a_saga_comes_about_unless_it_is_cancelled(
    dsn: str, admin: Connection, hall: Hall, order: OrderId
) -> None:
    """Its command reaches another aggregate; one that was replaced or cancelled leaves neither job nor row."""
    async with flow_of(hall).open(dsn) as app, app.worker():
        await pick(app, order, "set", "set", "cancel")
        await all_is_done(admin)
        assert await app.jobs.find(name="PublishCommand:Remind") == []
        assert await admin.fetchval("SELECT count(*) FROM eventflow.deadline") == 0

        await pick(app, order, "early")

        async def reminded() -> bool:
            return (await app.aggregates.load(Order, order)).reminders == 1

        await eventually(reminded)
        await eventually(lambda: admin.fetchval("SELECT NOT EXISTS (SELECT FROM eventflow.running)"))
        assert await admin.fetchval("SELECT count(*) FROM eventflow.deadline") == 0
        [done] = await app.jobs.find(name="PublishCommand:Remind")
        assert done.state is JobState.SUCCEEDED
        assert len(await app.events.load(StreamId("Order", order))) == 1


async def test_event_that_fails_holds_up_its_own_aggregate_alone(
    dsn: str, admin: Connection, hall: Hall, order: OrderId
) -> None:
    """Other couriers' events reach the same saga, which has nothing of what failed; a deleted dead letter is passed."""
    async with flow_of(hall).open(dsn) as app, app.worker(SWEEPING):
        stuck = await pick(app, order, "first", "broken", "behind")
        await pick(app, order, "other")
        await all_is_done(admin)
        await pick(app, order, "far behind", by=stuck)
        await pick(app, order, "another")
        await all_is_done(admin)
        assert sorted(await seen(app, order)) == ["another", "first", "other"]
        assert len(await app.jobs.find(state=JobState.DEAD)) == 1

        await admin.execute("DELETE FROM eventflow.dead_letter")
        await eventually(lambda: admin.fetchval("SELECT NOT EXISTS (SELECT FROM eventflow.event_line)"))
        assert (await seen(app, order))[-2:] == ["behind", "far behind"]
