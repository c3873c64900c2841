"""The command bus: finds the handler, goes through the middleware, returns the typed result."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from eventflow.commands.command import AnyCommand, check_identified
from eventflow.commands.context import Causation, CommandContext, FollowUps, FollowUpsFactory
from eventflow.commands.handlers import CommandHandlers
from eventflow.services import Services

log = logging.getLogger("eventflow.commands")

R = TypeVar("R")

CallNext = Callable[[AnyCommand[Any]], Awaitable[Any]]
CommandMiddleware = Callable[[AnyCommand[Any], CommandContext, CallNext], Awaitable[Any]]
"""``async (command, context, call_next) -> result``: goes around every handler, outermost first."""


class CommandBus:
    """
    Publishes commands to their handlers.

    Args:
        handlers: One per command type.
        services: Where handlers get their services from.
        follow_ups: Begins what one handler run schedules.
        middleware: Goes around every handler, the first outermost.
    """

    def __init__(
        self,
        handlers: CommandHandlers,
        *,
        services: Services,
        follow_ups: FollowUpsFactory,
        middleware: Sequence[CommandMiddleware] = (),
    ) -> None:
        self._handlers = handlers
        self._services = services
        self._follow_ups = follow_ups
        self._middleware = tuple(middleware)

    async def publish(self, command: AnyCommand[R]) -> R:
        """
        Run the command's handler now and return its result.

        What the handler scheduled is written after it returned; if it raises, nothing is.

        Raises:
            NoCommandHandlerError: nobody handles commands of this type.
            DomainError: the handler refused.
        """
        follow_ups = self._follow_ups(Causation(command.source_id, command.source_id))
        result = await self.handle(command, follow_ups, correlation_id=command.source_id)
        await follow_ups.commit()
        return result

    async def handle(self, command: AnyCommand[R], follow_ups: FollowUps, *, correlation_id: str) -> R:
        """Like :meth:`publish`, but leaves what the handler scheduled to the caller to commit."""
        check_identified(command)
        handler = self._handlers.find(type(command))
        async with self._services.scope() as services:
            context = CommandContext(
                services=services,
                source_id=command.source_id,
                correlation_id=correlation_id,
                follow_ups=follow_ups,
            )
            result: R = await self._through(0, handler, command, context)
        log.debug("command.handled", extra={"command": type(command).__qualname__, "source_id": command.source_id})
        return result

    async def _through(
        self,
        position: int,
        handler: Callable[[AnyCommand[Any], CommandContext], Awaitable[Any]],
        command: AnyCommand[Any],
        context: CommandContext,
    ) -> Any:  # Any: the result of whatever command it is
        if position == len(self._middleware):
            return await handler(command, context)

        def call_next(passed_on: AnyCommand[Any]) -> Awaitable[Any]:
            return self._through(position + 1, handler, passed_on, context)

        return await self._middleware[position](command, context, call_next)
