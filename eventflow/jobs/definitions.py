"""Which jobs a program knows: its own, and one for every command."""

from collections.abc import Iterable, Mapping
from typing import Any

from eventflow.commands import AnyCommand
from eventflow.definitions import Definitions
from eventflow.errors import UnknownCommandDefinitionError, UnknownJobDefinitionError
from eventflow.jobs.job import Job, JobOptions
from eventflow.jobs.publish_command import NAME_PREFIX, PublishCommandJob
from eventflow.messages import Message

_DEFAULTS = JobOptions()


class JobDefinitions:
    """
    Encodes and decodes jobs, and knows the options of their types.

    A command is a job too: ``PublishCommand:<its name>``, in its own version.

    Args:
        jobs: The registered job types.
        commands: The registered command types.
        options: Of job and command types; what is missing has the defaults.
    """

    def __init__(
        self,
        jobs: Definitions[Job],
        commands: Definitions[AnyCommand[Any]],
        options: Mapping[type[Message], JobOptions],
    ) -> None:
        self._jobs = jobs
        self._commands = commands
        self._options = options

    def encode(self, job: Job) -> tuple[str, int, bytes]:
        """The stored name, version and JSON of a job, proven to read back equal."""
        if isinstance(job, PublishCommandJob):
            command, data = self._commands.encode(job.command)
            return NAME_PREFIX + command.name, command.version, data
        definition, data = self._jobs.encode(job)
        return definition.name, definition.version, data

    def decode(self, name: str, version: int, payload: bytes | str) -> Job:
        """
        The job stored under (name, version), upgraded to its newest type.

        Raises:
            UnknownJobDefinitionError: nobody registered it, or the command in it.
            UndecodableMessageError: its type refuses the payload.
        """
        if name.startswith(NAME_PREFIX):
            try:
                return PublishCommandJob.create(self._commands.decode(name.removeprefix(NAME_PREFIX), version, payload))
            except UnknownCommandDefinitionError as exc:
                raise UnknownJobDefinitionError(name, version) from exc
        return self._jobs.decode(name, version, payload)

    def options_of(self, job: Job) -> JobOptions:
        """The options of a job's type; for a published command, of the command's."""
        return self._options.get(type(job.command if isinstance(job, PublishCommandJob) else job), _DEFAULTS)

    def names(self, *, runnable: Iterable[type[AnyCommand[Any]]]) -> list[tuple[str, int]]:
        """
        Every (name, version) that can be read and run here.

        Args:
            runnable: The command types that have a handler.
        """
        handled = set(runnable)
        commands = [
            (NAME_PREFIX + name, version)
            for name, version in self._commands.names()
            if self._commands.current(name, version) in handled
        ]
        return [*self._jobs.names(), *commands]

    def retentions(self) -> list[int]:
        """All the days that some type is kept in history, the default's included; ascending."""
        return sorted({_DEFAULTS.retention_days, *(o.retention_days for o in self._options.values())} - {0})
