"""The running application: the composition root."""

import logging
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from random import Random
from typing import Any, TypeVar

from typing_extensions import Unpack

from eventflow.aggregates import AggregateRepository
from eventflow.application.backends import Backend, open_backend
from eventflow.application.model import Model
from eventflow.clock import Clock, SystemClock
from eventflow.commands import AnyCommand, CommandBus, CommandExecution
from eventflow.errors import EventFlowError, WorkerError
from eventflow.eventstore import Event, EventStore
from eventflow.ids import JobId
from eventflow.jobs import (
    InMemoryJobScheduler,
    JobEncoder,
    JobRunner,
    JobScheduler,
    Notify,
    PublishCommandJob,
    SupportsExecute,
    UnitsOfWork,
    Worker,
    WorkerSettings,
)
from eventflow.postgres import PooledConnection
from eventflow.scheduling import ScheduleOptions
from eventflow.services import Services
from eventflow.subscribers import CatchUp, EventDispatcher, EventJobRunner, InlineSubscribers, Progress, SagaSubscriber
from eventflow.supervision import Patience, background_tasks

log = logging.getLogger("eventflow.application")

R = TypeVar("R")

LONGEST_TICK_SECONDS = 1.0
"""Producers announce only jobs that are due before the next look of every worker."""


class Commands:
    """``app.commands``: publish now, or schedule for later."""

    def __init__(self, bus: CommandBus, scheduler: JobScheduler) -> None:
        self._bus = bus
        self._scheduler = scheduler

    async def publish(self, command: AnyCommand[R], *, connection: SupportsExecute | None = None) -> R:
        """
        Run the command's handler now, commit, and return its result; see :meth:`CommandBus.publish`.

        Args:
            command: What to do.
            connection: Write in this connection's transaction, as from ``app.transaction()``.

        Raises:
            NoCommandHandlerError: nobody handles commands of this type.
            DomainError: the handler refused; nothing was stored.
            DuplicateOperationError: a command with this source id was done before; it has the result.
            OptimisticConcurrencyError: others got in between every time, six times.
            CommitUnknownError: the connection broke and it cannot be told; publishing it again is safe.
        """
        return await self._bus.publish(command, connection=connection)

    async def preview(self, command: AnyCommand[Any]) -> Sequence[Event]:
        """The events that publishing the command now would have; its handler runs, and nothing is written."""
        return await self._bus.preview(command)

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
        aggregates: Loads aggregates.
        events: The event store.
        services: What the flow's lifespan registered.
    """

    def __init__(
        self,
        model: Model,
        *,
        backend: Backend,
        scheduler: JobScheduler,
        bus: CommandBus,
        repository: AggregateRepository,
        dispatcher: EventDispatcher,
        runner: JobRunner,
        services: Services,
        clock: Clock,
        rng: Random,
    ) -> None:
        self._model = model
        self._backend = backend
        self._dispatcher = dispatcher
        self._runner = runner
        self._clock = clock
        self._rng = rng
        self.services = services
        self.aggregates = repository
        self.events: EventStore = backend.events
        self.jobs = scheduler
        self.commands = Commands(bus, scheduler)

    def transaction(self) -> AbstractAsyncContextManager[PooledConnection]:
        """
        A database transaction to schedule in: ``async with app.transaction() as connection``.

        Jobs scheduled with ``connection=connection`` exist exactly if it commits; workers are woken after that.

        Raises:
            EventFlowError: the application keeps its jobs in memory.
        """
        if self._backend.transactions is None:
            raise EventFlowError("app.transaction() needs a database; this application keeps its jobs in memory")
        return self._backend.transactions.begin()

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
        if backend.transactions is not None and settings.tick_interval > LONGEST_TICK_SECONDS:
            raise WorkerError(f"tick_interval is at most {LONGEST_TICK_SECONDS:g} s, not {settings.tick_interval:g}")
        worker = Worker(
            backend.store,
            backend.commits,
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

    def catch_up(self, subscriber: str) -> AsyncGenerator[Progress]:
        """
        Give a subscriber that was added later the jobs of the events before: ``async for progress in app.catch_up(…)``.

        May be stopped anywhere and begun again; see :meth:`CatchUp.run`.

        Raises:
            UnknownSubscriberError: there is no such subscriber.
            EventFlowError: the application keeps its events in memory.
        """
        if self._backend.catch_ups is None:
            raise EventFlowError("catch_up() needs a database; this application keeps its events in memory")
        return CatchUp(self._dispatcher, self._backend.events, self._backend.catch_ups).run(subscriber)

    async def run_due(self) -> int:
        """
        Run every job that is due, and those they lead to, here and now; returns the number of attempts.

        For tests of an application opened with ``"memory:"`` and a clock they advance.
        """
        if not isinstance(self.jobs, InMemoryJobScheduler):
            raise EventFlowError('run_due() is for applications opened with "memory:"')
        return await self.jobs.run_due()


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
    """Open what an application needs, put it together, and close it in reverse; see :meth:`EventFlow.open`."""
    clock, rng = clock or SystemClock(), rng or Random()
    address = dsn or os.environ.get("EVENTFLOW_DSN")
    if not address:
        raise EventFlowError(
            "no database: set EVENTFLOW_DSN, pass flow.open(dsn), or say flow.open('memory:') to keep jobs in memory"
        )
    encoder = JobEncoder(model.definitions)
    async with (
        open_backend(address, encoder, clock=clock, rng=rng, **database_options) as backend,
        compose(model, lifespans, backend, encoder=encoder, clock=clock, rng=rng) as app,
    ):
        yield app


@asynccontextmanager
async def compose(
    model: Model,
    lifespans: Sequence[Callable[[Services], AbstractAsyncContextManager[None]]],
    backend: Backend,
    *,
    encoder: JobEncoder,
    clock: Clock,
    rng: Random,
) -> AsyncGenerator[App]:
    """Put an application together over a backend that is open, and enter its lifespans."""
    services = Services()
    patience = Patience(clock, rng)
    async with AsyncExitStack() as stack:
        dispatcher = EventDispatcher(
            model.subscriptions,
            definitions=model.events,
            events=backend.events,
            encoder=encoder,
            find_job=backend.find_job,
            patience=patience,
        )
        inline = InlineSubscribers(
            model.inline,
            definitions=model.events,
            events=backend.events,
            services=services,
            raise_errors=model.raise_inline_errors,
        )
        units = inline.units = UnitsOfWork(
            encoder,
            backend.events,
            backend.commits,
            transactions=backend.transactions,
            patience=patience,
            follow=dispatcher.follow,
            committed=inline.committed,
        )
        repository = AggregateRepository(backend.events, model.events, model.aggregates)
        execution = CommandExecution(repository, services=services, middleware=model.middleware, clock=clock, rng=rng)
        sagas = CommandExecution(repository, services=services, middleware=(), clock=clock, rng=rng)
        for subscription in model.subscriptions:
            if isinstance(subscription.subscriber, SagaSubscriber):
                subscription.subscriber.execution = sagas
        bus = CommandBus(model.handlers, execution, new_unit=units)
        runner = JobRunner(
            model.definitions, invoker=model.invoker, services=services, units=units, clock=clock, rng=rng
        )
        app = App(
            model,
            backend=backend,
            scheduler=backend.scheduler(runner, model.interest(None)),
            bus=bus,
            repository=repository,
            dispatcher=dispatcher,
            runner=runner,
            services=services,
            clock=clock,
            rng=rng,
        )
        services.register_value(CommandBus, bus)
        services.register_value(EventJobRunner, dispatcher)
        services.register_value(App, app)
        stack.push_async_callback(services.aclose)
        for lifespan in lifespans:
            await stack.enter_async_context(lifespan(services))
        yield app
