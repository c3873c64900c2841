"""The demo's application: one command, whose handler writes down that it started and then works for a moment."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from eventflow import CommandContext, EventFlow, Services, StandaloneCommand, SystemClock
from eventflow.demo.ledger import Ledger


@asynccontextmanager
async def lifespan(services: Services) -> AsyncGenerator[None]:
    """Offer the ledger to the handlers."""
    async with Ledger.open(os.environ["EVENTFLOW_DSN"]) as ledger:
        services.register_value(Ledger, ledger)
        yield


flow = EventFlow("demo", lifespan=lifespan)


class SendReminder(StandaloneCommand[None]):
    """Remind somebody; sending takes so many seconds."""

    number: int
    takes_seconds: float


@flow.command_handler
async def send_reminder(command: SendReminder, context: CommandContext) -> None:
    """Note the start, then pretend to send."""
    ledger = await context.services.aget(Ledger)
    await ledger.executing(context.source_id)
    await SystemClock().sleep(command.takes_seconds)
