"""The job that publishes a command."""

from typing import Any, Self

from eventflow.commands import AnyCommand, CommandBus
from eventflow.jobs.job import Job, JobContext

NAME_PREFIX = "PublishCommand:"
"""
Stored name of such a job: this and the command's name, with the command's version and JSON.

So a worker claims only commands it knows, queues and retries are the command's, and in psql one sees which
command waits, not a command inside a job.
"""


class PublishCommandJob(Job):
    """Publishes its command through the bus; what the handler schedules is written with the completion."""

    command: AnyCommand[Any]

    @classmethod
    def create(cls, command: AnyCommand[Any]) -> Self:
        """The job that publishes *command*."""
        return cls(command=command)

    async def execute(self, context: JobContext) -> None:
        bus = await context.services.aget(CommandBus)
        await bus.handle(self.command, context.follow_ups, correlation_id=context.correlation_id)
