"""The job that publishes a command."""

import logging
from typing import Any, Self, final

from eventflow.commands import AnyCommand, CommandBus, is_command
from eventflow.errors import DuplicateOperationError, InvalidHandlerError, InvalidScheduleError
from eventflow.jobs.job import Job, JobContext

log = logging.getLogger("eventflow.jobs")

NAME_PREFIX = "PublishCommand:"
"""
Stored name of such a job: this and the command's name, with the command's version and JSON.

So a worker claims only commands it knows, queues and retries are the command's, and in psql one sees which
command waits, not a command inside a job.
"""


@final
class PublishCommandJob(Job):
    """
    Publishes its command through the bus; its completion is written with what the command changes.

    Raises:
        InvalidScheduleError: it is given something else.
    """

    command: AnyCommand[Any]

    def __post_init__(self) -> None:
        if not is_command(self.command):
            raise InvalidScheduleError(f"only commands can be published, not {self.command!r}")

    def __init_subclass__(cls) -> None:
        # What is stored is the command alone: a worker would run this class, and not the derived one.
        raise InvalidHandlerError(f"{cls.__qualname__}: PublishCommandJob cannot be derived from")

    @classmethod
    def create(cls, command: AnyCommand[Any]) -> Self:
        """The job that publishes *command*."""
        return cls(command=command)

    async def execute(self, context: JobContext) -> None:
        bus = await context.services.aget(CommandBus)
        try:
            await bus.handle(self.command, context.unit)
        except DuplicateOperationError as exc:  # the effect is there
            log.info("command.duplicate", extra={"job_id": context.job_id, "source_id": exc.source_id})
