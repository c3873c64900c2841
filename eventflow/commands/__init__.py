"""Commands, their handlers and the bus between them."""

from eventflow.commands.bus import CallNext, CommandBus, CommandMiddleware
from eventflow.commands.command import (
    AnyCommand,
    Command,
    DistinctCommand,
    StandaloneCommand,
    command_version,
    is_command,
    result_type,
)
from eventflow.commands.context import Causation, CommandContext, FollowUps, FollowUpsFactory
from eventflow.commands.definitions import CommandDefinitions
from eventflow.commands.handlers import CommandHandler, CommandHandlers

__all__ = [
    "AnyCommand",
    "CallNext",
    "Causation",
    "Command",
    "CommandBus",
    "CommandContext",
    "CommandDefinitions",
    "CommandHandler",
    "CommandHandlers",
    "CommandMiddleware",
    "DistinctCommand",
    "FollowUps",
    "FollowUpsFactory",
    "StandaloneCommand",
    "command_version",
    "is_command",
    "result_type",
]
