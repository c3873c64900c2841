"""The job that has one subscriber deal with one event."""

from abc import ABC, abstractmethod
from types import new_class

from eventflow.eventstore import StreamId
from eventflow.jobs import Job, JobContext
from eventflow.messages import declare_reserved

NAME_PREFIX = "Subscriber:"
"""Stored name of such a job: this and the subscriber's name."""


class EventJob(Job):
    """
    One event for one subscriber, whose own subclass says which; the event itself is read from its stream.

    Attributes:
        event: Its stored name, for who looks at the job.
        catches_up: Later events may have been dealt with already.
        passes_over: The event is left out, and only those behind it in line are to come.
    """

    aggregate_name: str
    aggregate_id: str
    stream_version: int
    event: str
    catches_up: bool = False
    passes_over: bool = False

    @property
    def stream(self) -> StreamId:
        """Where the event is."""
        return StreamId(self.aggregate_name, self.aggregate_id)

    async def execute(self, context: JobContext) -> None:
        await (await context.services.aget(EventJobRunner)).dispatch(self, context)


class EventJobRunner(ABC):
    """The service that such jobs ask for."""

    @abstractmethod
    async def dispatch(self, job: EventJob, context: JobContext) -> None:
        """Have the job's subscriber deal with its event."""


def event_job_type(subscriber: str) -> type[EventJob]:
    """The type of a subscriber's jobs."""
    made: type[EventJob] = new_class(f"EventJobOf{subscriber.title()}", (EventJob,))
    return declare_reserved(NAME_PREFIX + subscriber)(made)
