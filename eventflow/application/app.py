"""The running application: the composition root."""

import logging
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from random import Random
from typing import Any, TypeVar

from typing_extensions import Unpack

from eventflow.application.model import Model
from eventflow.clock import Clock, SystemClock
from eventflow.commands import AnyCommand, Causation, CommandBus
from eventflow.errors import EventFlowError, WorkerError
from eventflow.ids import JobId
from eventflow.jobs import (
    InMemoryJobScheduler,
    InMemoryJobStore,
    InstantJobScheduler,
    JobBuffer,
    JobEncoder,
    JobRunner,
    JobScheduler,
    JobStore,
    NewJob,
    Notify,
    PublishCommandJob,
    SupportsExecute,
    Worker,
    WorkerSettings,
)
from eventflow.jobs.worker import InProcessPresence, Presence
from eventflow.postgres import PooledConnection, PostgresDatabase
from eventflow.scheduling import ScheduleOptions
from eventflow.services import Services
from eventflow.supervision import background_tasks

log = logging.getLogger("eventflow.application")

R = TypeVar("R")

LONGEST_TICK_SECONDS = 1.0
"""Producers announce only jobs that are due before the next look of every worker."""


class Commands:
    """``app.commands``: publish now, or schedule for later."""

    def __init__(self, bus: CommandBus, scheduler: JobScheduler) -> None:
        self._bus = bus
        self._scheduler = scheduler

    async def publish(self, command: AnyCommand[R]) -> R:
        """
        Run the command's handler now and return its result.

        Raises:
            NoCommandHandlerError: nobody handles commands of this type.
            DomainError: the handler refused.
        """
        return await self._bus.publish(command)

    async def schedule(
        self,
        command: AnyCommand[Any],
        *,
        connection: SupportsExecute | None = None,
        notify: Notify = "after_commit",
        **options: Unpack[ScheduleOptions],
    ) -> JobId:
        """Publish the command later: :meth:`JobScheduler.schedule` of ``PublishCommandJob.create(command)``."""
        job = PublishCommandJob.create(command)
        return await self._scheduler.schedule(job, connection=connection, notify=notify, **options)

    async def schedule_many(
        self,
        commands: Sequence[AnyCommand[Any]],
        *,
        connection: SupportsExecute | None = None,
        notify: Notify = "after_commit",
        **options: Unpack[ScheduleOptions],
    ) -> Sequence[JobId]:
        """Schedule many commands with the same options, all or none; the ids are in their order."""
        jobs = [PublishCommandJob.create(command) for command in commands]
        return await self._scheduler.schedule_many(jobs, connection=connection, notify=notify, **options)


class App:
    """
    An open application; made by ``flow.open()``.

    Attributes:
        commands: Publishes and schedules commands.
        jobs: Schedules, cancels, reschedules and finds jobs.
        services: What the flow's lifespan registered.
    """

    def __init__(
        self,
        model: Model,
        *,
        backend: "_Backend",
        bus: CommandBus,
        runner: JobRunner,
        services: Services,
        clock: Clock,
        rng: Random,
    ) -> None:
        self._model = model
        self._backend = backend
        self._runner = runner
        self._clock = clock
        self._rng = rng
        self.services = services
        self.jobs: JobScheduler = backend.scheduler
        self.commands = Commands(bus, backend.scheduler)

    def transaction(self) -> AbstractAsyncContextManager[PooledConnection]:
        """
        A database transaction to schedule in: ``async with app.transaction() as connection``.

        Jobs scheduled with ``connection=connection`` exist exactly if it commits; workers are woken after that.

        Raises:
            EventFlowError: the application keeps its jobs in memory.
        """
        if self._backend.database is None:
            raise EventFlowError("app.transaction() needs a database; this application keeps its jobs in memory")
        return self._backend.database.transaction()

    @asynccontextmanager
    async def worker(self, settings: WorkerSettings | None = None) -> AsyncGenerator[Worker]:
        """
        Run jobs in this process while the block lasts; its end stops the worker in good order.

        Args:
            settings: How it behaves.
        """
        worker = self.create_worker(settings or WorkerSettings())
        async with background_tasks() as group:
            await group.start(worker.run)
            try:
                yield worker
            finally:
                worker.stop()

    def create_worker(self, settings: WorkerSettings) -> Worker:
        """A worker that is not started; ``await worker.run()``."""
        backend = self._backend
        if backend.store is None or backend.presence is None:
            raise EventFlowError("an instant application has no jobs for a worker")
        if backend.database is not None and settings.tick_interval > LONGEST_TICK_SECONDS:
            raise WorkerError(f"tick_interval is at most {LONGEST_TICK_SECONDS:g} s, not {settings.tick_interval:g}")
        worker = Worker(
            backend.store,
            backend.presence(settings.heartbeat_interval),
            self._runner,
            interest=self._model.interest(settings.queues),
            retentions=self._model.definitions.retentions(),
            settings=settings,
            clock=self._clock,
            rng=self._rng,
        )
        backend.on_wake(worker.wake)
        return worker

    async def run_due(self) -> int:
        """
        Run every job that is due, and those they lead to, here and now; returns the number of attempts.

        For tests of an application opened with ``"memory:"`` and a clock they advance.
        """
        if not isinstance(self.jobs, InMemoryJobScheduler):
            raise EventFlowError('run_due() is for applications opened with "memory:"')
        return await self.jobs.run_due()


class _Backend:
    """Where the jobs of an open application are, and who works on them."""

    def __init__(
        self,
        scheduler: JobScheduler,
        *,
        store: JobStore | None = None,
        presence: Callable[[float], Presence] | None = None,
        database: PostgresDatabase | None = None,
        on_wake: Callable[[Callable[[], None]], None] = lambda _: None,
    ) -> None:
        self.scheduler = scheduler
        self.store = store
        self.presence = presence
        self.database = database
        self.on_wake = on_wake


@asynccontextmanager
async def open_app(
    model: Model,
    lifespans: Sequence[Callable[[Services], AbstractAsyncContextManager[None]]],
    dsn: str | None,
    *,
    clock: Clock | None,
    rng: Random | None,
    **database_options: Any,
) -> AsyncGenerator[App]:
    """Put an application together, open what it needs, and close it in reverse; see :meth:`EventFlow.open`."""
    clock, rng, services = clock or SystemClock(), rng or Random(), Services()
    address = dsn or os.environ.get("EVENTFLOW_DSN")
    if not address:
        raise EventFlowError(
            "no database: set EVENTFLOW_DSN, pass flow.open(dsn), or say flow.open('memory:') to keep jobs in memory"
        )
    encoder = JobEncoder(model.definitions)
    write: list[Callable[[Sequence[NewJob]], Any]] = []  # set below: the scheduler needs runner and bus, they need it

    def new_buffer(cause: Causation) -> JobBuffer:
        return JobBuffer(encoder, cause, write[0])

    bus = CommandBus(model.handlers, services=services, follow_ups=new_buffer, middleware=model.middleware)
    runner = JobRunner(
        model.definitions, invoker=model.invoker, services=services, new_buffer=new_buffer, clock=clock, rng=rng
    )
    async with AsyncExitStack() as stack:
        if address == "instant:":
            instant = InstantJobScheduler(encoder, runner, clock)
            backend = _Backend(instant)
            write.append(instant.run)
        elif address == "memory:":
            store = InMemoryJobStore(clock)
            backend = _Backend(
                InMemoryJobScheduler(store, encoder, runner, model.interest(None)),
                store=store,
                presence=lambda interval: InProcessPresence(store, clock=clock, rng=rng, interval=interval),
                on_wake=store.on_wake,
            )
            write.append(store.insert)
        else:
            database = await stack.enter_async_context(
                PostgresDatabase.open(address, clock=clock, rng=rng, **database_options)
            )
            backend = _Backend(
                database.scheduler(encoder),
                store=database.store,
                presence=database.presence,
                database=database,
                on_wake=database.on_wake,
            )
            write.append(database.store.insert)
        app = App(model, backend=backend, bus=bus, runner=runner, services=services, clock=clock, rng=rng)
        services.register_value(CommandBus, bus)
        services.register_value(App, app)
        stack.push_async_callback(services.aclose)
        for lifespan in lifespans:
            await stack.enter_async_context(lifespan(services))
        yield app
