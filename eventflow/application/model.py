"""What an application's definitions amount to, once they are read."""

from collections.abc import Callable
from typing import Any

from eventflow.aggregates import Aggregate, AggregateDefinitions, appliers_of
from eventflow.commands import AnyCommand, CommandDefinitions, CommandHandler, CommandHandlers, CommandMiddleware
from eventflow.definitions import Definitions, describe, upgrader_types
from eventflow.errors import DefinitionError, InvalidHandlerError, UnknownJobDefinitionError
from eventflow.eventstore import Event, EventDefinitions, reads_event
from eventflow.invocation import Invoker
from eventflow.jobs import Interest, Job, JobDefinitions, JobOptions
from eventflow.messages import Message
from eventflow.subscribers import (
    FunctionSubscriber,
    Saga,
    SagaSubscriber,
    Subscriber,
    Subscription,
    event_job_type,
    handlings_of,
)


class Model:
    """
    The commands, handlers and jobs of an application.

    Attributes:
        invoker: Calls handlers and jobs.
        handlers: One per command type.
        middleware: Around every handler, outermost first.
        definitions: Encodes and decodes jobs.
        events: Encodes and decodes events.
        aggregates: Encodes and decodes snapshots.
        subscriptions: Who gets which events as jobs.
        inline: Who gets them in the process that has committed.
        raise_inline_errors: Whether publishers get the errors of those.
    """

    def __init__(self) -> None:
        self._commands = CommandDefinitions()
        self._jobs: Definitions[Job] = Definitions(Job, UnknownJobDefinitionError)
        self.events = EventDefinitions()
        self.aggregates = AggregateDefinitions()
        self.subscriptions: list[Subscription] = []
        self.inline: list[FunctionSubscriber] = []
        self.raise_inline_errors = False
        self._options: dict[type[Message], JobOptions] = {}
        self.invoker = Invoker()
        self.handlers = CommandHandlers()
        self.middleware: list[CommandMiddleware] = []
        self.definitions = JobDefinitions(self._jobs, self._commands, self._options)

    def add_command_handler(self, function: Callable[..., Any], options: JobOptions) -> None:
        """Register a handler and its command."""
        handler = CommandHandler(function, self.invoker)
        self.handlers.add(handler)
        self._commands.add(handler.command_type)
        self._options[handler.command_type] = options
        if handler.aggregate_type is not None:
            self.add_aggregate(handler.aggregate_type)

    def add_aggregate(self, aggregate_type: type[Aggregate[Any]]) -> None:
        """Register an aggregate, and the events that it applies."""
        self.aggregates.add(aggregate_type)
        for event_type in appliers_of(aggregate_type):
            self.events.add(event_type)

    def add_subscriber(
        self, function: Callable[..., Any], options: JobOptions, *, name: str | None, ordered: bool, inline: bool
    ) -> None:
        """Register a subscriber, and the events that it names; the same function twice is once."""
        known = [s for s in (*self.inline, *(s.subscriber for s in self.subscriptions)) if _is_of(s, function)]
        if known:
            return
        subscriber = FunctionSubscriber(function, self.invoker, name=name, is_ordered=ordered)
        for event_type in subscriber.event_types:
            if event_type is not Event:
                self.events.add(event_type)
        if inline:
            self.inline.append(subscriber)
        else:
            self._subscribe(subscriber, options)

    def add_saga(self, saga_type: type[Saga[Any]], options: JobOptions) -> None:
        """Register a saga, the events that it handles and those that it emits."""
        known = [subscription.subscriber for subscription in self.subscriptions]
        if any(isinstance(subscriber, SagaSubscriber) and subscriber.saga_type is saga_type for subscriber in known):
            return
        subscriber = SagaSubscriber(saga_type, self.invoker)
        self.add_aggregate(saga_type)
        for event_type in handlings_of(saga_type):
            self.events.add(event_type)
        self._subscribe(subscriber, options)

    def _subscribe(self, subscriber: Subscriber, options: JobOptions) -> None:
        for other in self.subscriptions:
            if other.subscriber.name == subscriber.name:
                raise DefinitionError(f"two subscribers are called {subscriber.name!r}; give one another name=")
        job_type = event_job_type(subscriber.name)
        self.subscriptions.append(Subscription(subscriber, job_type))
        self.add_job(job_type, options)

    def add_event(self, event_type: type[Event]) -> None:
        """Register an event."""
        self.events.add(event_type)

    def add_command(self, command_type: type[AnyCommand[Any]]) -> None:
        """Register a command without a handler."""
        self._commands.add(command_type)

    def add_job(self, job_type: type[Job], options: JobOptions) -> None:
        """Register a job."""
        self._jobs.add(job_type)
        self._options[job_type] = options

    def add_middleware(self, function: CommandMiddleware) -> None:
        """Register middleware; the first registered is the outermost."""
        if function not in self.middleware:
            self.middleware.append(function)

    def add_upgrader(self, function: Callable[..., Any]) -> None:
        """Register an upgrader of commands or of jobs."""
        if reads_event(function):
            self.events.add_upgrader(function)
            return
        source, target = upgrader_types(function)
        if issubclass(source, Aggregate) and issubclass(target, Aggregate):
            self.aggregates.add_upgrader(function)
        elif issubclass(source, AnyCommand) and issubclass(target, AnyCommand):
            self._commands.add_upgrader(function)
        elif issubclass(source, Job) and issubclass(target, Job):
            self._jobs.add_upgrader(function)
        else:
            raise InvalidHandlerError(
                f"{describe(function)} must lead from a command, job, event or aggregate to another of its kind"
            )

    def check(self) -> None:
        """Build what encodes and decodes; raises :class:`DefinitionError`."""
        self._commands.check()
        self._jobs.check()
        self.events.check()
        self.aggregates.check()

    def names(self) -> list[tuple[str, int]]:
        """The stored names and versions that this application can run."""
        return self.definitions.names(runnable=(handler.command_type for handler in self.handlers))

    def interest(self, queues: tuple[str, ...] | None) -> Interest:
        """What a worker of this application claims."""
        names = self.names()
        return Interest(queues, tuple(name for name, _ in names), tuple(version for _, version in names))


def _is_of(subscriber: Subscriber, function: Callable[..., Any]) -> bool:
    return isinstance(subscriber, FunctionSubscriber) and subscriber.function is function
