"""Putting an application together, opening and closing it."""

import logging
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from eventflow import (
    AnyCommand,
    App,
    CommandBus,
    CommandContext,
    DefinitionError,
    DomainError,
    DuplicateCommandHandlerError,
    DuplicateDefinitionError,
    EventFlow,
    EventFlowError,
    InMemoryJobScheduler,
    InstantJobScheduler,
    InvalidHandlerError,
    InvalidScheduleError,
    Job,
    JobContext,
    JobId,
    JobState,
    ManualClock,
    NoCommandHandlerError,
    PublishCommandJob,
    RetryPolicy,
    Services,
    UnknownCommandDefinitionError,
    UnknownJobDefinitionError,
    WorkerSettings,
)
from eventflow.commands import CallNext
from tests.unit.bench import Act, Behaviours, CancelOrder, OrderId, PlaceOrder, RebuildIndex, raising
from tests.unit.test_definitions import Impostor, Named, PlaceV1, PlaceV2, to_v2

ORDER = OrderId.new()


class Ledger:
    """A service that notes what handlers did."""

    def __init__(self) -> None:
        self.notes: list[str] = []


class Note(Job):
    """A job that uses the service."""

    text: str

    async def execute(self, context: JobContext) -> None:
        (await context.services.aget(Ledger)).notes.append(self.text)


def shop(ledger: Ledger) -> EventFlow:
    """A flow with a service, commands and a job."""

    @asynccontextmanager
    async def lifespan(services: Services) -> AsyncGenerator[None]:
        services.register_value(Ledger, ledger)
        yield

    flow = EventFlow("shop", lifespan=lifespan)
    flow.job(Note)

    @flow.command_handler
    async def place(command: PlaceOrder, context: CommandContext) -> int:
        (await context.services.aget(Ledger)).notes.append(f"placed {command.total_cents}")
        context.schedule(CancelOrder(aggregate_id=command.aggregate_id), delay=timedelta(minutes=30))
        return command.total_cents

    @flow.command_handler(queue="slow")
    async def cancel(command: CancelOrder, context: CommandContext) -> None:
        context.schedule(Note(text="cancelled"))

    assert place is not None
    assert cancel is not None
    return flow


async def test_open_without_an_address_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application that nobody told where its jobs are does not guess."""
    monkeypatch.delenv("EVENTFLOW_DSN", raising=False)

    with pytest.raises(EventFlowError, match=r"EVENTFLOW_DSN.*memory:"):
        async with EventFlow("shop").open():
            pass


async def test_address_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an argument the address is the environment's."""
    monkeypatch.setenv("EVENTFLOW_DSN", "memory:")

    async with EventFlow("shop").open() as app:
        assert isinstance(app.jobs, InMemoryJobScheduler)


async def test_whole_story_in_memory() -> None:
    """Publish, schedule and run: a command's follow-ups run when a clock that the test advances says so."""
    ledger, clock = Ledger(), ManualClock()

    async with shop(ledger).open("memory:", clock=clock) as app:
        assert await app.commands.publish(PlaceOrder(aggregate_id=ORDER, total_cents=42)) == 42
        job_id = await app.commands.schedule(PlaceOrder(aggregate_id=ORDER, total_cents=7), delay=timedelta(days=1))
        assert await app.run_due() == 0
        clock.advance(timedelta(minutes=30))
        assert await app.run_due() == 2
        clock.advance(timedelta(hours=24))
        assert await app.run_due() == 1
        clock.advance(timedelta(minutes=30))
        assert await app.run_due() == 2
        record = await app.jobs.get(job_id)

    assert ledger.notes == ["placed 42", "cancelled", "placed 7", "cancelled"]
    assert record is not None
    assert record.state is JobState.SUCCEEDED
    assert record.aggregate_id == ORDER


async def test_not_before_its_time() -> None:
    """A job does not run a microsecond before it is due, with a queue name and without, now, later or at an instant."""
    ledger, clock = Ledger(), ManualClock()
    delay = timedelta(hours=1)

    async with shop(ledger).open("memory:", clock=clock) as app:
        await app.jobs.schedule(Note(text="delay"), delay=delay)
        await app.jobs.schedule(Note(text="delay and queue"), delay=delay, queue="mail")
        await app.jobs.schedule(Note(text="at"), at=clock.now() + delay)
        await app.jobs.schedule(Note(text="at and queue"), at=clock.now() + delay, queue="mail")
        clock.advance(delay - timedelta(microseconds=1))
        assert await app.run_due() == 0
        clock.advance(timedelta(microseconds=1))
        assert await app.run_due() == 4

    assert sorted(ledger.notes) == ["at", "at and queue", "delay", "delay and queue"]


async def test_source_id_is_kept_through_a_job() -> None:
    """The command that a job publishes is the operation that was scheduled, at every attempt."""
    seen: list[AnyCommand[Any]] = []
    flow = EventFlow("shop")

    @flow.command_handler(retry=RetryPolicy(base=timedelta(0)))
    async def cancel(command: CancelOrder, context: CommandContext) -> None:
        seen.append(command)
        if len(seen) < 3:
            raise ValueError("not yet")

    command = CancelOrder(aggregate_id=ORDER)
    async with flow.open("memory:", clock=ManualClock()) as app:
        await app.jobs.schedule(PublishCommandJob.create(command))
        assert await app.run_due() == 3

    assert cancel is not None
    assert seen == [command] * 3


async def test_unknown_messages_are_refused_when_scheduled() -> None:
    """A job or command that nobody registered cannot be scheduled, nor can the command inside a job."""
    async with EventFlow("shop").open("memory:") as app:
        with pytest.raises(UnknownJobDefinitionError):
            await app.jobs.schedule(Act())
        with pytest.raises(UnknownCommandDefinitionError):
            await app.jobs.schedule(PublishCommandJob.create(RebuildIndex()))
        with pytest.raises(UnknownCommandDefinitionError):
            await app.commands.schedule(RebuildIndex())
        with pytest.raises(NoCommandHandlerError):
            await app.commands.publish(RebuildIndex())
        assert await app.jobs.find() == []


async def test_command_without_a_handler_waits_for_a_process_that_has_one() -> None:
    """A process that only schedules a command does not run it, and does not bury it either."""
    flow = EventFlow("producer")
    flow.add_commands(RebuildIndex)

    async with flow.open("memory:") as app:
        job_id = await app.commands.schedule(RebuildIndex())
        assert await app.run_due() == 0
        record = await app.jobs.get(job_id)

    assert record is not None
    assert (record.state, record.attempt) == (JobState.WAITING, 0)


async def test_instant_runs_at_once_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """The instant scheduler runs jobs in the call, follow-ups too, and warns where it ignores a delay."""
    ledger = Ledger()

    with caplog.at_level(logging.WARNING, "eventflow.jobs"):
        async with shop(ledger).open("instant:") as app:
            assert isinstance(app.jobs, InstantJobScheduler)
            now = await app.jobs.schedule(Note(text="now"))
            assert [record.getMessage() for record in caplog.records] == []
            await app.jobs.schedule(Note(text="later"), delay=timedelta(days=90))
            await app.commands.schedule(PlaceOrder(aggregate_id=ORDER, total_cents=1))
            await app.jobs.schedule_many([Note(text="a"), Note(text="b")])
            assert await app.jobs.get(now) is None
            assert await app.jobs.find() == []

    assert JobId(now) == now
    assert ledger.notes == ["now", "later", "placed 1", "cancelled", "a", "b"]
    assert {record.getMessage() for record in caplog.records} == {"job.ran_instead_of_waiting"}
    assert len(caplog.records) == 2  # the delayed job, and the delayed follow-up


async def test_instant_failure_is_logged_and_not_raised(caplog: pytest.LogCaptureFixture) -> None:
    """A job that fails at once does not fail its caller, who gets an id as from any scheduler."""
    flow = EventFlow("instant")
    flow.job(Act)

    with caplog.at_level(logging.WARNING, "eventflow.jobs"):
        async with flow.open("instant:") as app:
            app.services.register_value(Behaviours, Behaviours(raising(DomainError("no"))))
            assert JobId(await app.jobs.schedule(Act()))
            with pytest.raises(InvalidScheduleError):
                await app.jobs.schedule(Act(), delay=timedelta(-1))
            with pytest.raises(EventFlowError, match="instant"):
                app.create_worker(WorkerSettings())
            with pytest.raises(EventFlowError, match="memory:"):
                await app.run_due()

    assert [record.getMessage() for record in caplog.records] == ["job.failed"]


async def test_instant_commit_is_not_cancelled_halfway() -> None:
    """Who gives up on a command after its events are written cannot take back a part of the jobs that follow."""
    begun, goes_on, ran = anyio.Event(), anyio.Event(), list[str]()
    flow = EventFlow("instant")

    @flow.job
    class Follow(Job):
        text: str

        async def execute(self, context: JobContext) -> None:
            begun.set()
            await goes_on.wait()
            ran.append(self.text)

    @flow.command_handler
    async def place(command: PlaceOrder, context: CommandContext) -> int:
        context.schedule(Follow(text="first"))
        context.schedule(Follow(text="second"))
        return command.total_cents

    assert place is not None
    async with flow.open("instant:") as app, anyio.create_task_group() as group:
        group.start_soon(app.commands.publish, PlaceOrder(aggregate_id=ORDER, total_cents=1))
        await begun.wait()
        group.cancel_scope.cancel()
        goes_on.set()

    assert ran == ["first", "second"]


async def test_memory_has_no_transaction() -> None:
    """A transaction needs a database, and its absence is said."""
    async with EventFlow("shop").open("memory:") as app:
        with pytest.raises(EventFlowError, match="needs a database"):
            app.transaction()


async def test_worker_in_process_runs_jobs() -> None:
    """app.worker() runs jobs while its block lasts, and ends in good order."""
    ledger, clock = Ledger(), ManualClock()

    async with shop(ledger).open("memory:", clock=clock) as app:
        job_id = await app.jobs.schedule(Note(text="ran"))
        async with app.worker(WorkerSettings(concurrency=2)):
            while (record := await app.jobs.get(job_id)) and record.state is not JobState.SUCCEEDED:
                clock.advance(0.01)
                await anyio.lowlevel.checkpoint()

    assert ledger.notes == ["ran"]


def noting(name: str, notes: list[str]) -> Any:
    """A lifespan that notes when it is entered and left."""

    @asynccontextmanager
    async def lifespan(services: Services) -> AsyncGenerator[None]:
        notes.append(f"{name} in")
        try:
            yield
        finally:
            notes.append(f"{name} out")

    return lifespan


async def test_lifespans_are_entered_in_order_and_left_in_reverse() -> None:
    """The flow's own lifespan comes first, then those it includes, each once; they close the other way round."""
    notes: list[str] = []
    inner, middle, other = (EventFlow(name, lifespan=noting(name, notes)) for name in ("inner", "middle", "other"))
    flow = EventFlow("flow", lifespan=noting("flow", notes))
    middle.include(inner)
    other.include(inner)
    flow.include(middle)
    flow.include(other)

    with pytest.raises(RuntimeError, match="body"):  # noqa: PT012 - the block is the subject
        async with flow.open("memory:"):
            notes.append("body")
            raise RuntimeError("body")

    names = ["flow", "middle", "inner", "other"]
    assert notes == [*(f"{name} in" for name in names), "body", *(f"{name} out" for name in reversed(names))]


async def test_failing_lifespan_closes_those_before_it() -> None:
    """If one lifespan cannot be entered, what was opened before it is closed and its error is raised."""
    notes: list[str] = []

    def failing(services: Services) -> AbstractAsyncContextManager[None]:
        raise OSError("no mail server")

    flow = EventFlow("flow", lifespan=noting("flow", notes))
    flow.include(EventFlow("mail", lifespan=failing))

    with pytest.raises(OSError, match="no mail server"):
        async with flow.open("memory:"):
            pass

    assert notes == ["flow in", "flow out"]


async def test_opened_twice_is_two_applications() -> None:
    """A flow holds definitions only: two applications of it share nothing."""
    flow = shop(Ledger())

    async with flow.open("memory:") as first, flow.open("memory:") as second:
        job_id = await first.jobs.schedule(Note(text="x"))
        assert await second.jobs.get(job_id) is None


async def test_application_is_a_service() -> None:
    """Handlers reach the bus and the application as services."""
    found: list[object] = []

    async def look(context: JobContext) -> None:
        found.extend([await context.services.aget(App), await context.services.aget(CommandBus)])

    flow = EventFlow("shop")
    flow.job(Act)
    async with flow.open("memory:") as app:
        app.services.register_value(Behaviours, Behaviours(look))
        await app.jobs.schedule(Act())
        await app.run_due()

        assert found[0] is app
        assert isinstance(found[1], CommandBus)


async def test_included_definitions_are_the_applications() -> None:
    """Handlers, jobs, upgraders and middleware of an included flow work as the flow's own."""
    seen: list[int] = []
    module, flow = EventFlow("orders"), EventFlow("shop")

    @module.middleware
    async def count(command: AnyCommand[Any], context: CommandContext, call_next: CallNext) -> Any:
        seen.append(1)
        return await call_next(command)

    @module.command_handler
    async def place(command: PlaceV2, context: CommandContext) -> int:
        return command.cents

    module.upgrader(to_v2)
    flow.include(module)
    flow.include(module)

    async with flow.open("memory:") as app:
        await app.commands.schedule(PlaceV1(aggregate_id=ORDER, euros=3))
        assert await app.run_due() == 1
        assert await app.commands.publish(PlaceV2(aggregate_id=ORDER, cents=3)) == 3

    assert count is not None
    assert place is not None
    assert seen == [1, 1]


def test_flows_that_include_each_other_are_refused() -> None:
    """A circle of flows is an error that names them, at the line that closes it."""
    first, second, third = EventFlow("first"), EventFlow("second"), EventFlow("third")
    first.include(second)
    second.include(third)

    with pytest.raises(InvalidHandlerError, match="'third' cannot include 'first'"):
        third.include(first)
    with pytest.raises(InvalidHandlerError, match="'first' cannot include 'first'"):
        first.include(first)


def test_conflicts_across_flows_are_found_when_opened() -> None:
    """Two flows with one command's handler, or one stored name, do not fit together."""

    async def one(command: CancelOrder, context: CommandContext) -> None: ...

    async def two(command: CancelOrder, context: CommandContext) -> None: ...

    first, second = EventFlow("first"), EventFlow("second")
    first.command_handler(one)
    second.command_handler(two)
    first.include(second)
    with pytest.raises(DuplicateCommandHandlerError, match=r"one.*two"):
        first.open("memory:")

    third, fourth = EventFlow("third"), EventFlow("fourth")
    third.job(Named)
    fourth.job(Impostor)
    third.include(fourth)
    with pytest.raises(DuplicateDefinitionError, match=r"Named.*Impostor"):
        third.open("memory:")


def test_definitions_that_cannot_work_are_refused_before_anything_is_opened() -> None:
    """What JSON cannot carry, and an upgrader between kinds, are errors of open()."""

    class Torn(Act):
        when: timedelta | bytes

    def astray(old: PlaceV1) -> Act:
        return Act()

    torn, strange = EventFlow("torn"), EventFlow("strange")
    torn.job(Torn)
    strange.upgrader(astray)

    with pytest.raises(DefinitionError, match="Torn"):
        torn.open("memory:")
    with pytest.raises(InvalidHandlerError, match="astray must lead"):
        strange.open("memory:")


@pytest.mark.parametrize(
    "options",
    [
        {"queue": ""},
        {"queue": "x" * 101},
        {"priority": 4},
        {"priority": None},
        {"timeout": timedelta(0)},
        {"timeout": 30},
        {"retry": 3},
        {"retention_days": -1},
        {"retention_days": 3_651},
    ],
    ids=repr,
)
def test_options_that_make_no_sense_are_refused_where_they_stand(options: dict[str, Any]) -> None:
    """A wrong option is an error of the decorator's own line."""
    flow = EventFlow("shop")

    with pytest.raises((InvalidScheduleError, InvalidHandlerError)):
        flow.job(**options)
    with pytest.raises((InvalidScheduleError, InvalidHandlerError)):
        flow.command_handler(**options)
    with pytest.raises(TypeError):
        flow.job(timeot=timedelta(1))  # type: ignore[call-overload]


async def test_registered_options_are_stored_or_used() -> None:
    """Queue and priority are stored with the job, retention and retry are the running process's."""
    clock, flow = ManualClock(), EventFlow("shop")
    flow.job(queue="mail", priority=3, retention_days=0)(Act)

    async with flow.open("memory:", clock=clock) as app:
        job_id = await app.jobs.schedule(Act())
        record = await app.jobs.get(job_id)
        app.services.register_value(Behaviours, Behaviours(raising(DomainError("no"))))
        await app.run_due()
        dead = await app.jobs.get(job_id)

    assert record is not None
    assert (record.queue, record.priority) == ("mail", 3)
    assert dead is not None  # dead letters are kept whatever the retention
    assert dead.state is JobState.DEAD


def test_decorators_return_what_they_decorate() -> None:
    """Decorated functions and classes stay what they are."""
    flow = EventFlow("shop")

    async def handle(command: CancelOrder, context: CommandContext) -> None: ...

    assert flow.command_handler(handle) is handle
    assert flow.command_handler(queue="x")(handle) is handle
    assert flow.job(Act) is Act
    assert flow.upgrader(to_v2) is to_v2
