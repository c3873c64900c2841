"""Commands, their handlers and the bus between them."""

from eventflow.commands.bus import CommandBus, UnitOfWorkFactory
from eventflow.commands.command import (
    AnyCommand,
    Command,
    DistinctCommand,
    StandaloneCommand,
    aggregate_id_of,
    command_version,
    is_command,
    result_type,
)
from eventflow.commands.context import CommandContext
from eventflow.commands.definitions import CommandDefinitions
from eventflow.commands.execution import CallNext, CommandExecution, CommandMiddleware
from eventflow.commands.handlers import CommandHandler, CommandHandlers
from eventflow.commands.unit_of_work import Causation, UnitOfWork

__all__ = [
    "AnyCommand",
    "CallNext",
    "Causation",
    "Command",
    "CommandBus",
    "CommandContext",
    "CommandDefinitions",
    "CommandExecution",
    "CommandHandler",
    "CommandHandlers",
    "CommandMiddleware",
    "DistinctCommand",
    "StandaloneCommand",
    "UnitOfWork",
    "UnitOfWorkFactory",
    "aggregate_id_of",
    "command_version",
    "is_command",
    "result_type",
]
