"""The command bus: finds the handler, has the command executed, returns the typed result."""

import logging
from typing import Any, Protocol, TypeVar

from eventflow.commands.command import AnyCommand, check_identified, is_command
from eventflow.commands.execution import CommandExecution
from eventflow.commands.handlers import CommandHandlers
from eventflow.commands.unit_of_work import Causation, UnitOfWork
from eventflow.errors import InvalidMessageError
from eventflow.eventstore import Event

log = logging.getLogger("eventflow.commands")

R = TypeVar("R")


class UnitOfWorkFactory(Protocol):
    """Begins what one published command writes; *connection*: in the caller's transaction."""

    def __call__(self, cause: Causation, *, connection: Any = None) -> UnitOfWork: ...


class CommandBus:
    """
    Publishes commands to their handlers.

    Args:
        handlers: One per command type.
        execution: Runs them.
        new_unit: Begins what a published command writes.
    """

    def __init__(self, handlers: CommandHandlers, execution: CommandExecution, *, new_unit: UnitOfWorkFactory) -> None:
        self._handlers = handlers
        self._execution = execution
        self._new_unit = new_unit

    async def publish(self, command: AnyCommand[R], *, connection: Any = None) -> R:
        """
        Run the command's handler now, commit, and return its result.

        Events, what the handler scheduled and the receipt are written at once when it has returned; if it raises,
        nothing is. On a conflict with others the handler runs again, on the aggregate as it is then.

        Args:
            command: What to do.
            connection: Write in this connection's transaction instead of one of its own.

        Raises:
            NoCommandHandlerError: nobody handles commands of this type.
            InvalidMessageError: a field would not survive JSON.
            DomainError: the handler refused.
            DuplicateOperationError: a command with this source id was done before; it has the result.
            OptimisticConcurrencyError: others got in between every time, six times.
            CommitUnknownError: the connection broke and it cannot be told; publishing it again is safe.
        """
        self._handlers.find(type(_checked(command))).check(command)
        unit = self._new_unit(Causation(command.source_id, command.source_id), connection=connection)
        return await self._execute(command, unit)

    async def handle(self, command: AnyCommand[R], unit: UnitOfWork) -> R:
        """Like :meth:`publish`, within the unit of work of a job."""
        return await self._execute(_checked(command), unit)

    async def preview(self, command: AnyCommand[Any]) -> tuple[Event, ...]:
        """The events that the command would have now; its handler runs, and nothing is written."""
        handler = self._handlers.find(type(_checked(command)))
        handler.check(command)
        unit = self._new_unit(Causation(command.source_id, command.source_id))
        try:
            return await self._execution.preview(command, handler, unit)
        finally:
            await unit.close()

    async def _execute(self, command: AnyCommand[R], unit: UnitOfWork) -> R:
        handler = self._handlers.find(type(command))  # before anything is loaded
        try:
            result: R = await self._execution.execute(command, handler, unit)
        finally:
            await unit.close()
        log.debug("command.handled", extra={"command": type(command).__qualname__, "source_id": command.source_id})
        return result


def _checked(command: AnyCommand[R]) -> AnyCommand[R]:
    if not is_command(command):
        raise InvalidMessageError(type(command), "it is not a command")
    check_identified(command)
    return command
