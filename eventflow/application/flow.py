"""The definitions of an application, collected by decorators."""

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from random import Random
from typing import Any, TypeVar, overload

from eventflow.aggregates import Aggregate
from eventflow.application.app import App, open_app
from eventflow.application.model import Model
from eventflow.clock import Clock
from eventflow.commands import AnyCommand, CommandMiddleware
from eventflow.errors import InvalidHandlerError
from eventflow.eventstore import Event
from eventflow.jobs import Job, JobOptions
from eventflow.postgres import DEFAULT_POOL_SIZE, DEFAULT_SCHEMA
from eventflow.retry import RetryPolicy
from eventflow.scheduling import check_priority, check_retry, check_text, check_timeout
from eventflow.services import Services
from eventflow.subscribers import Saga

H = TypeVar("H", bound=Callable[..., Any])
J = TypeVar("J", bound=type[Job])
S = TypeVar("S", bound=type[Saga[Any]])
Lifespan = Callable[[Services], AbstractAsyncContextManager[None]]
"""Opens and closes what handlers need: an async context manager that registers services."""


@asynccontextmanager
async def _no_lifespan(_: Services) -> AsyncGenerator[None]:
    yield


class EventFlow:
    """
    An application: its commands, handlers and jobs. Definitions only; nothing is opened until :meth:`open`.

    Annotations are read when the application is opened, so definitions may stand in any order.

    Args:
        name: Shown in logs.
        lifespan: Registers services; entered by every process that opens the flow, worker or web.
        raise_inline_errors: ``publish`` raises what inline subscribers raise, as an ``ExceptionGroup``; the command is
            written all the same. By default it is logged.
    """

    def __init__(self, name: str, *, lifespan: Lifespan = _no_lifespan, raise_inline_errors: bool = False) -> None:
        self.name = name
        self.lifespan = lifespan
        self.raise_inline_errors = raise_inline_errors
        self._definitions: list[Callable[[Model], None]] = []
        self._included: list[EventFlow] = []

    @overload
    def command_handler(self, function: H) -> H: ...
    @overload
    def command_handler(
        self,
        *,
        queue: str = "default",
        priority: int = 1,
        retry: RetryPolicy | None = None,
        timeout: timedelta | None = None,
        retention_days: int = 1,
    ) -> Callable[[H], H]: ...
    def command_handler(self, function: Callable[..., Any] | None = None, **options: Any) -> Any:
        """
        Register ``async def handle(order: Order, command: PlaceOrder, context: CommandContext) -> Result``.

        Which aggregate and command it takes, and what it returns, is read from its annotations; the handler of a
        :class:`StandaloneCommand` takes no aggregate. A plain ``def`` runs in a
        thread. The options are those of the jobs that publish the command.
        """
        job_options = _job_options(**options)

        def register(handler: H) -> H:
            self._definitions.append(lambda model: model.add_command_handler(handler, job_options))
            return handler

        return register if function is None else register(function)

    @overload
    def job(self, job_type: J) -> J: ...
    @overload
    def job(
        self,
        *,
        queue: str = "default",
        priority: int = 1,
        retry: RetryPolicy | None = None,
        timeout: timedelta | None = None,
        retention_days: int = 1,
    ) -> Callable[[J], J]: ...
    def job(self, job_type: Any = None, **options: Any) -> Any:
        """
        Register a :class:`Job` subclass.

        Args:
            job_type: The class; left out when there are options.
            **options: *queue*, *priority* (0 first, to 3), *retry*, *timeout* of one attempt, and
                *retention_days* in the history (0: not kept).
        """
        job_options = _job_options(**options)

        def register(registered: J) -> J:
            self._definitions.append(lambda model: model.add_job(registered, job_options))
            return registered

        return register if job_type is None else register(job_type)

    @overload
    def subscriber(self, function: H) -> H: ...
    @overload
    def subscriber(
        self,
        *,
        name: str | None = None,
        ordered: bool = False,
        inline: bool = False,
        queue: str = "default",
        priority: int = 1,
        retry: RetryPolicy | None = None,
        timeout: timedelta | None = None,
        retention_days: int = 1,
    ) -> Callable[[H], H]: ...
    def subscriber(
        self,
        function: Callable[..., Any] | None = None,
        *,
        name: str | None = None,
        ordered: bool = False,
        inline: bool = False,
        **options: Any,
    ) -> Any:
        """
        Register ``async def remind(event: OrderPlaced, context: SubscriberContext) -> None``.

        Each event makes a job for it, written with the event, tried again and dead-lettered on its own. The annotation
        may be a union of events, or :class:`Event` for all of them.

        Args:
            function: The subscriber; left out when there are options.
            name: Stored in its jobs; default: the function's name.
            ordered: Take the events of one aggregate in order; one that fails holds up those after it, of this
                aggregate and for this subscriber alone.
            inline: Run in the process that has committed, right after it, and never again: an error is logged. Not for
                commands that were published in the caller's own transaction.
            **options: Those of the jobs, as for :meth:`job`.
        """
        job_options = _job_options(**options)

        def register(subscriber: H) -> H:
            self._definitions.append(
                lambda model: model.add_subscriber(subscriber, job_options, name=name, ordered=ordered, inline=inline)
            )
            return subscriber

        return register if function is None else register(function)

    @overload
    def saga(self, saga_type: S) -> S: ...
    @overload
    def saga(
        self,
        *,
        queue: str = "default",
        priority: int = 1,
        retry: RetryPolicy | None = None,
        timeout: timedelta | None = None,
        retention_days: int = 1,
    ) -> Callable[[S], S]: ...
    def saga(self, saga_type: Any = None, **options: Any) -> Any:
        """
        Register a :class:`Saga` subclass.

        It gets the events of one aggregate in order. What it emits and schedules is written in one transaction with the
        completion of the job that brought the event.
        """
        job_options = _job_options(**options)

        def register(registered: S) -> S:
            self._definitions.append(lambda model: model.add_saga(registered, job_options))
            return registered

        return register if saga_type is None else register(saga_type)

    def upgrader(self, function: H) -> H:
        """
        Register ``(old: PlaceOrderV1) -> PlaceOrder``: from one stored version to the next.

        Of a command, a job, an event, or the state of an aggregate. Upgraders chain. An upgraded command keeps its
        source id and its aggregate id. An event may become several (``-> list[ItemAdded]``), or none
        (``-> ItemAdded | None``).
        """
        self._definitions.append(lambda model: model.add_upgrader(function))
        return function

    def middleware(self, function: CommandMiddleware) -> CommandMiddleware:
        """Register ``async (command, context, call_next) -> result``, which goes around every command handler."""
        self._definitions.append(lambda model: model.add_middleware(function))
        return function

    def add_commands(self, *command_types: type[AnyCommand[Any]]) -> None:
        """Name commands that this process only schedules or reads; handled ones are known by their handlers."""
        for command_type in command_types:
            self._definitions.append(lambda model, added=command_type: model.add_command(added))

    def add_jobs(self, *job_types: type[Job]) -> None:
        """Register jobs without options, for example those of another package."""
        for job_type in job_types:
            self.job(job_type)

    def add_events(self, *event_types: type[Event]) -> None:
        """Name events that this process only reads; those that aggregates apply are known by them."""
        for event_type in event_types:
            self._definitions.append(lambda model, added=event_type: model.add_event(added))

    def add_aggregates(self, *aggregate_types: type[Aggregate[Any]]) -> None:
        """Name aggregates that this process only loads; those of command handlers are known by them."""
        for aggregate_type in aggregate_types:
            self._definitions.append(lambda model, added=aggregate_type: model.add_aggregate(added))

    def include(self, other: "EventFlow") -> None:
        """Take over the definitions of another flow, as of a module; its lifespan is entered too."""
        if self in other._all():
            raise InvalidHandlerError(f"flow {self.name!r} cannot include {other.name!r}, which includes it")
        self._included.append(other)

    def check(self) -> Model:
        """
        Read all annotations and put the definitions together; what :meth:`open` does first.

        Raises:
            DefinitionError: something does not fit; the message names the function or class.
        """
        model = Model()
        model.raise_inline_errors = self.raise_inline_errors
        for flow in self._all():
            for define in flow._definitions:
                define(model)
        model.check()
        return model

    def open(
        self,
        dsn: str | None = None,
        *,
        schema: str = DEFAULT_SCHEMA,
        listen_dsn: str | None = None,
        pool_size: int = DEFAULT_POOL_SIZE,
        clock: Clock | None = None,
        rng: Random | None = None,
        **connect_options: Any,
    ) -> AbstractAsyncContextManager[App]:
        """
        Open the application: ``async with flow.open() as app``.

        Args:
            dsn: Address of the database; default: ``EVENTFLOW_DSN``. ``"memory:"`` keeps jobs in this process and
                forgets them with it; ``"instant:"`` runs each job where it is scheduled.
            schema: Where the tables are.
            listen_dsn: A direct address for LISTEN, if *dsn* leads through a pooler in transaction mode.
            pool_size: Most connections that ``app.transaction()`` uses at once.
            clock: Replaces the system's clock, for tests.
            rng: Source of jitter.
            connect_options: Further arguments of ``asyncpg.connect``.

        Raises:
            DefinitionError: the definitions do not fit together.
            DatabaseUnavailableError: the database cannot be reached.
            SchemaVersionError: its tables are missing, older or newer; see ``eventflow migrate``.
        """
        lifespans = [flow.lifespan for flow in self._all()]
        return open_app(
            self.check(),
            lifespans,
            dsn,
            schema=schema,
            listen_dsn=listen_dsn,
            pool_size=pool_size,
            clock=clock,
            rng=rng,
            **connect_options,
        )

    def _all(self) -> "list[EventFlow]":
        """This flow and all it includes, each once."""
        seen: list[EventFlow] = []

        def walk(flow: EventFlow) -> Iterator[EventFlow]:
            if flow not in seen:
                seen.append(flow)
                yield flow
                for included in flow._included:
                    yield from walk(included)

        return list(walk(self))


def _job_options(
    *,
    queue: str = "default",
    priority: int = 1,
    retry: RetryPolicy | None = None,
    timeout: timedelta | None = None,
    retention_days: int = 1,
) -> JobOptions:
    if not 0 <= retention_days <= 3650:
        raise InvalidHandlerError(f"retention_days={retention_days}: 0 (not kept) to 3650")
    return JobOptions(
        queue=check_text("queue", queue, 100),
        priority=check_priority(priority),
        retry=RetryPolicy() if retry is None else check_retry(retry),
        timeout=check_timeout(timeout),
        retention_days=retention_days,
    )
