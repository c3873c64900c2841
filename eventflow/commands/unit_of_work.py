"""What one run of a command handler or job writes, in one transaction."""

from typing import Any, Protocol

import msgspec
from typing_extensions import Unpack

from eventflow.eventstore import Changes, Deadline, History, ReceiptKey, StreamId
from eventflow.ids import JobId
from eventflow.messages import Message
from eventflow.scheduling import ScheduleOptions


class Causation(msgspec.Struct, frozen=True):
    """
    Where something comes from.

    Attributes:
        correlation_id: All of one story share it.
        causation_id: What directly caused it.
        traceparent: W3C trace context it belongs to.
    """

    correlation_id: str
    causation_id: str
    traceparent: str | None = None


class UnitOfWork(Protocol):
    """
    Collects what is to be written, and writes it at once.

    Attributes:
        cause: The command or job whose run it is.
        job_id: The job; ``None``: a direct caller publishes.
        deadline: The deadline that the job is; ``None``: it is none.
    """

    cause: Causation
    job_id: JobId | None
    deadline: Deadline | None

    def schedule(
        self, message: Message, *, deadline: Deadline | None = None, **options: Unpack[ScheduleOptions]
    ) -> JobId:
        """Check and encode a job or command at once; nothing is written yet. Raises what ``schedule`` raises."""
        ...

    def unschedule(self, job_id: JobId) -> None:
        """Forget what was scheduled under this id."""
        ...

    async def begin(self) -> None:
        """Begin, or begin again: what was scheduled and written before is undone."""
        ...

    async def look(self, stream: StreamId | None, receipt: ReceiptKey, snapshot_version: int | None) -> History:
        """See :meth:`~eventflow.eventstore.EventStore.look`; within the transaction, if there is one."""
        ...

    async def admitted(self) -> None:
        """Wait until the handler may run: a job may look before it has a slot."""
        ...

    async def transaction(self) -> Any:
        """
        A connection in the transaction that everything is written in; it is held until then.

        Raises:
            EventFlowError: everything is kept in memory.
        """
        ...

    async def lock(self, stream: StreamId) -> None:
        """Keep others from writing to a stream until this is written."""
        ...

    async def commit(self, changes: Changes) -> None:
        """
        Write *changes* and what was scheduled, all or nothing, once.

        Raises:
            OptimisticConcurrencyError: the stream has other events than expected.
            DuplicateOperationError: there is a receipt already.
            DeadlinePassedError: the deadline was replaced or cancelled.
            ClaimLostError: the job is not this worker's any more.
            CommitUnknownError: the connection broke and it cannot be told.
        """
        ...

    async def close(self) -> None:
        """End what is open; what was not committed is undone."""
        ...
