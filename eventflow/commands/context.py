"""What a command handler may ask for besides its command."""

from typing import Protocol

import msgspec
from typing_extensions import Unpack

from eventflow.ids import JobId, SourceId
from eventflow.messages import Message
from eventflow.scheduling import ScheduleOptions
from eventflow.services import ServiceScope


class Causation(msgspec.Struct, frozen=True):
    """Where something comes from: the id all of one story share, and the id of what directly caused it."""

    correlation_id: str
    causation_id: str


class FollowUps(Protocol):
    """Jobs and commands that a handler wants scheduled if, and only if, it succeeds."""

    def add(self, message: Message, **options: Unpack[ScheduleOptions]) -> JobId:
        """Check and encode at once; nothing is written yet. Raises what ``schedule`` raises."""
        ...

    async def commit(self) -> None:
        """Schedule everything that was added, in one transaction."""
        ...


class FollowUpsFactory(Protocol):
    """Begins the follow-ups of one handler run."""

    def __call__(self, cause: Causation) -> FollowUps: ...


class CommandContext:
    """
    The surroundings of one run of a command handler.

    Attributes:
        services: The services registered in the flow's lifespan, in a scope of this run.
        source_id: The command's source id.
        correlation_id: Shared by everything that follows from one first command or job.
    """

    def __init__(
        self, *, services: ServiceScope, source_id: SourceId, correlation_id: str, follow_ups: FollowUps
    ) -> None:
        self.services = services
        self.source_id = source_id
        self.correlation_id = correlation_id
        self._follow_ups = follow_ups

    def schedule(self, message: Message, **options: Unpack[ScheduleOptions]) -> JobId:
        """
        Schedule a command or job with this command's own commit; a handler that fails schedules nothing.

        The message is checked and encoded now; options are those of ``app.jobs.schedule``.
        """
        return self._follow_ups.add(message, **options)
