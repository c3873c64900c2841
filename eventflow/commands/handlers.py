"""Command handlers: functions that decide, found by the type of command they take."""

from collections.abc import Callable, Iterator
from typing import Any, get_origin

from eventflow.commands.command import AnyCommand, result_type
from eventflow.commands.context import CommandContext
from eventflow.definitions import annotations_of, describe
from eventflow.errors import DuplicateCommandHandlerError, InvalidHandlerError, NoCommandHandlerError
from eventflow.invocation import Invoker

AnyHandler = Callable[[Any, CommandContext], Any]
"""(command, context) → result, or an awaitable of it. The registry pairs it with its command type."""


class CommandHandler:
    """
    A handler function with what its annotations say.

    Raises:
        InvalidHandlerError: it is not ``(command: SomeCommand, context: CommandContext) -> Result``, or the
            result is another than the command declares.
    """

    def __init__(self, function: AnyHandler, invoker: Invoker) -> None:
        self._invoker = invoker
        self.function = function
        self.name = describe(function)
        hints = annotations_of(function)
        returned = hints.pop("return", None)
        parameters = list(hints.items())
        if len(parameters) != 2 or not _is_command(parameters[0][1]):
            raise InvalidHandlerError(
                f"{self.name} must be annotated as (command: SomeCommand, context: CommandContext) -> Result"
            )
        if parameters[1][1] is not CommandContext:
            raise InvalidHandlerError(f"{self.name}: its second parameter must be a CommandContext")
        self.command_type: type[AnyCommand[Any]] = parameters[0][1]
        declared = result_type(self.command_type)
        if returned != declared and Any not in (returned, declared):
            raise InvalidHandlerError(
                f"{self.name} returns {_shown(returned)}, but {self.command_type.__qualname__} "
                f"declares {_shown(declared)}"
            )

    async def __call__(self, command: AnyCommand[Any], context: CommandContext) -> Any:
        """Run it; a plain function runs in a thread, which is waited for even when cancelled."""
        return await self._invoker.call(self.function, command, context)


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


def _is_command(annotation: Any) -> bool:
    return get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, AnyCommand)


def _shown(annotation: Any) -> str:
    return "nothing (no annotation)" if annotation is None else getattr(annotation, "__qualname__", str(annotation))
