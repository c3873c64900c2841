"""Jobs: data and behaviour under a stored name and version."""

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from typing_extensions import Unpack

from eventflow.ids import JobId
from eventflow.messages import Message, declare
from eventflow.retry import RetryPolicy
from eventflow.scheduling import ScheduleOptions
from eventflow.services import ServiceScope

if TYPE_CHECKING:
    from eventflow.jobs.unit_of_work import JobUnitOfWork  # which encodes jobs

J = TypeVar("J", bound="type[Job]")

DEFAULT_QUEUE = "default"
DEFAULT_PRIORITY = 1


class JobContext:
    """
    The surroundings of one attempt.

    Attributes:
        job_id: The job, the same in every attempt.
        attempt: Counted from 1.
        due_at: When it was to run first.
        services: The services registered in the flow's lifespan, in a scope of this attempt.
        correlation_id: Shared by everything that follows from one first command or job.
        unit: What the attempt writes.
    """

    def __init__(
        self,
        *,
        job_id: JobId,
        attempt: int,
        due_at: datetime,
        services: ServiceScope,
        unit: "JobUnitOfWork",
    ) -> None:
        self.job_id = job_id
        self.attempt = attempt
        self.due_at = due_at
        self.services = services
        self.correlation_id = unit.cause.correlation_id
        self.unit = unit

    def schedule(self, message: Message, **options: Unpack[ScheduleOptions]) -> JobId:
        """
        Schedule a command or job in the transaction that completes this job; a failed attempt schedules nothing.

        The message is checked and encoded now; options are those of ``app.jobs.schedule``.
        """
        return self.unit.schedule(message, **options)

    async def transaction(self) -> Any:
        """
        A connection (of asyncpg) in the transaction that completes this job.

        It is opened now and held until the attempt has ended, from a bounded pool: keep what follows short. What is
        written over it exists exactly if the job has succeeded.

        Raises:
            EventFlowError: the application keeps everything in memory.
        """
        return await self.unit.transaction()


class Job(Message):
    """
    One durable unit of work: fields are stored, :meth:`execute` is run.

    >>> class SendReminder(Job):
    ...     address: str
    ...
    ...     async def execute(self, context: JobContext) -> None: ...
    """

    @abstractmethod
    def execute(self, context: JobContext) -> Awaitable[None] | None:
        """
        Do the work. Runs at least once, not before its due time; raising makes another attempt.

        An ``async def`` runs in the event loop and is cancelled by a timeout, a lost lease or a stop. A plain
        ``def`` runs in a thread, which cannot be stopped: its slot stays taken until it returns.
        """
        raise NotImplementedError


class JobOptions(msgspec.Struct, frozen=True, kw_only=True):
    """
    How jobs of a type are scheduled and run, unless a call says otherwise.

    Attributes:
        queue: Where they wait; stored when scheduled.
        priority: 0 (first) to 3; stored when scheduled.
        retry: Read by the worker that runs them.
        timeout: Longest time of one attempt; ``None``: no limit.
        retention_days: Whole days they stay in the history once finished; 0: not kept.
    """

    queue: str = DEFAULT_QUEUE
    priority: int = DEFAULT_PRIORITY
    retry: RetryPolicy = RetryPolicy()
    timeout: timedelta | None = None
    retention_days: int = 1


def job_version(name: str, version: int = 1, *, aliases: Iterable[str] = ()) -> Callable[[J], J]:
    """
    Store a job under this name and version instead of (class name, 1). Subclasses do not inherit it.

    Args:
        name: Stored name; 1 to 150 characters without blanks and colons.
        version: From 1; an upgrader leads from each version to the next.
        aliases: Former names that stored jobs of this version may still carry.
    """
    return declare(name, version, tuple(aliases))
