"""What a command handler may ask for besides its command."""

from typing import Any

from typing_extensions import Unpack

from eventflow.commands.command import AnyCommand, is_command
from eventflow.commands.unit_of_work import UnitOfWork
from eventflow.errors import InvalidScheduleError
from eventflow.eventstore import Deadline, StreamId
from eventflow.ids import JobId, SourceId
from eventflow.messages import Message
from eventflow.scheduling import ScheduleOptions, check_text
from eventflow.services import ServiceScope


class CommandContext:
    """
    The surroundings of one run of a command handler.

    Attributes:
        services: The services registered in the flow's lifespan, in a scope of this run.
        source_id: The command's source id.
        correlation_id: Shared by everything that follows from one first command or job.
        deadlines: By name the job of each deadline that was set in this run; ``None``: it was cancelled.
    """

    def __init__(
        self, *, services: ServiceScope, source_id: SourceId, unit: UnitOfWork, stream: StreamId | None = None
    ) -> None:
        self.services = services
        self.source_id = source_id
        self.correlation_id = unit.cause.correlation_id
        self.deadlines: dict[str, JobId | None] = {}
        self._unit = unit
        self._stream = stream

    def schedule(self, message: Message, **options: Unpack[ScheduleOptions]) -> JobId:
        """
        Schedule a command or job with this command's own commit; a handler that fails schedules nothing.

        The message is checked and encoded now; options are those of ``app.jobs.schedule``.
        """
        return self._unit.schedule(message, **options)

    def schedule_deadline(self, name: str, command: AnyCommand[Any], **options: Unpack[ScheduleOptions]) -> JobId:
        """
        Publish a command later, unless this aggregate's deadline is cancelled or set anew before.

        It comes about with the events of this command, or not at all. Setting a deadline of the same name replaces
        it, even one that is already due: whichever is committed first wins.

        Args:
            name: Tells the deadlines of one aggregate apart; 1 to 100 characters.
            command: For this aggregate or any other.
            **options: ``delay=`` or ``at=``, and the other options of ``app.jobs.schedule``.

        Raises:
            InvalidScheduleError: the handler takes no aggregate, it is no command, or an option makes no sense.
        """
        if not is_command(command):
            raise InvalidScheduleError(f"deadline {name!r}: only a command can be published then, not {command!r}")
        job_id = self._unit.schedule(command, deadline=self._deadline(name), **options)
        self._set_deadline(name, job_id)
        return job_id

    def cancel_deadline(self, name: str) -> None:
        """Keep a deadline of this aggregate from coming about; nothing happens if there is none."""
        self._deadline(name)
        self._set_deadline(name, None)

    async def transaction(self) -> Any:
        """
        A connection (of asyncpg) in the transaction that this command's events are written in.

        It is opened now and held until the handler has ended, from a bounded pool: keep what follows short. What is
        written over it exists exactly if the events do.

        Raises:
            EventFlowError: the application keeps everything in memory.
        """
        return await self._unit.transaction()

    def _set_deadline(self, name: str, job_id: JobId | None) -> None:
        before = self.deadlines.get(name)
        if before is not None:  # set in this very run: its job need not come to be
            self._unit.unschedule(before)
        self.deadlines[name] = job_id

    def _deadline(self, name: str) -> Deadline:
        if self._stream is None:
            raise InvalidScheduleError(
                f"deadline {name!r}: a deadline belongs to an aggregate, and this handler takes none"
            )
        return Deadline(self._stream, check_text("deadline", name, 100))
