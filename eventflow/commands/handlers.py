"""Command handlers: functions that decide, found by the type of command they take."""

from collections.abc import Callable, Iterator
from typing import Any, cast, get_args, get_origin

from eventflow.aggregates import Aggregate, id_type
from eventflow.commands.command import AnyCommand, Command, result_type
from eventflow.commands.context import CommandContext
from eventflow.definitions import annotations_of, describe
from eventflow.errors import DuplicateCommandHandlerError, InvalidHandlerError, NoCommandHandlerError
from eventflow.invocation import Invoker
from eventflow.serialization import Codec

AnyHandler = Callable[..., Any]
"""(aggregate, command, context) → result, or (command, context) → result, or an awaitable of it."""

_FORMS = (
    "(aggregate: SomeAggregate, command: SomeCommand, context: CommandContext) -> Result, "
    "or without the aggregate for a StandaloneCommand"
)


class CommandHandler:
    """
    A handler function with what its annotations say.

    Attributes:
        aggregate_type: Of its first parameter; ``None``: it takes no aggregate.
        result: How results are stored.

    Raises:
        InvalidHandlerError: it is not ``(aggregate, command, context) -> Result``, or ``(command, context) -> Result``;
            or its id type or result is another than the command declares.
    """

    def __init__(self, function: AnyHandler, invoker: Invoker) -> None:
        self._invoker = invoker
        self.function = function
        self.name = describe(function)
        hints = annotations_of(function)
        returned = hints.pop("return", None)
        annotations = list(hints.values())
        self.aggregate_type = _aggregate_type(annotations)
        if self.aggregate_type is not None:
            annotations = annotations[1:]
        if len(annotations) != 2 or not _is_command(annotations[0]):
            raise InvalidHandlerError(f"{self.name} must be annotated as {_FORMS}")
        if annotations[1] is not CommandContext:
            raise InvalidHandlerError(f"{self.name}: its last parameter must be a CommandContext")
        self.command_type: type[AnyCommand[Any]] = annotations[0]
        self._check_aggregate()
        declared = result_type(self.command_type)
        if returned != declared and Any not in (returned, declared):
            raise InvalidHandlerError(
                f"{self.name} returns {_shown(returned)}, but {self.command_type.__qualname__} "
                f"declares {_shown(declared)}"
            )
        self.result: Codec[Any] = Codec(declared)
        self._command = Codec(self.command_type)

    def check(self, command: AnyCommand[Any]) -> None:
        """Refuse a command that would not survive JSON; nothing checks its fields when it is made."""
        self._command.encode(command)

    async def __call__(self, *arguments: Any) -> Any:
        """Run it; a plain function runs in a thread, which is waited for even when cancelled."""
        return await self._invoker.call(self.function, *arguments)

    def _check_aggregate(self) -> None:
        if self.aggregate_type is None:
            return
        wanted, given = id_type(self.aggregate_type), aggregate_id_type(self.command_type)
        if given is None:
            raise InvalidHandlerError(f"{self.name}: {self.command_type.__qualname__} addresses no aggregate")
        if given != wanted:
            raise InvalidHandlerError(
                f"{self.name}: {self.command_type.__qualname__} addresses {_shown(given)}, but "
                f"{self.aggregate_type.__qualname__} is identified by {_shown(wanted)}"
            )


class CommandHandlers:
    """The handlers of an application, one per command type."""

    def __init__(self) -> None:
        self._handlers: dict[type[AnyCommand[Any]], CommandHandler] = {}

    def add(self, handler: CommandHandler) -> None:
        """
        Register a handler; the same function twice is once.

        Raises:
            DuplicateCommandHandlerError: another function handles its command.
        """
        present = self._handlers.setdefault(handler.command_type, handler)
        if present.function is not handler.function:
            raise DuplicateCommandHandlerError(handler.command_type, [present.name, handler.name])

    def find(self, command_type: type[AnyCommand[Any]]) -> CommandHandler:
        """The handler of exactly this type; raises :class:`NoCommandHandlerError`."""
        handler = self._handlers.get(command_type)
        if handler is None:
            raise NoCommandHandlerError(command_type)
        return handler

    def __contains__(self, command_type: type[AnyCommand[Any]]) -> bool:
        return command_type in self._handlers

    def __iter__(self) -> Iterator[CommandHandler]:
        return iter(self._handlers.values())


def aggregate_id_type(command_type: type[AnyCommand[Any]]) -> Any:  # Any: whatever annotation stands there
    """The type of the aggregate id that a command declares; ``None``: it addresses no aggregate."""
    if not issubclass(command_type, Command):
        return None
    for base in command_type.__mro__:
        for generic in vars(base).get("__orig_bases__", ()):
            if isinstance(get_origin(generic), type) and issubclass(get_origin(generic), Command):
                return get_args(generic)[0]
    return None


def _aggregate_type(annotations: list[Any]) -> type[Aggregate[Any]] | None:
    first = annotations[0] if annotations else None
    is_aggregate = isinstance(first, type) and issubclass(first, Aggregate)
    return cast("type[Aggregate[Any]]", first) if is_aggregate else None


def _is_command(annotation: Any) -> bool:
    return get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, AnyCommand)


def _shown(annotation: Any) -> str:
    return "nothing (no annotation)" if annotation is None else getattr(annotation, "__qualname__", str(annotation))
