"""The unit of work of commands and jobs: what they schedule and change is encoded at once, and committed together."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import anyio
import msgspec
from typing_extensions import Unpack

from eventflow.commands import Causation
from eventflow.errors import CommitUnknownError, EventFlowError, OptimisticConcurrencyError, StreamGrownError
from eventflow.eventstore import Changes, Deadline, EventMetadata, EventStore, History, ReceiptKey, Step, StreamId
from eventflow.ids import JobId
from eventflow.jobs.encoder import JobEncoder
from eventflow.jobs.records import Ending, NewJob
from eventflow.messages import Message
from eventflow.scheduling import ScheduleOptions
from eventflow.supervision import Patience

Write = Callable[[Changes, Sequence[NewJob], Any], Awaitable[None]]
"""Writes changes and jobs, all or nothing; in the transaction of a connection, if there is one."""
Follow = Callable[[Changes], Sequence[NewJob]]
"""The jobs that follow from changes by themselves: those of subscribers."""
NextStep = Callable[[Any], Awaitable[tuple[Step, NewJob | None]]]
"""Where a subscriber goes from its event, and the job to add for it; given the connection it writes over, if any."""


class Commits(Protocol):
    """Writes what commands and jobs change."""

    async def commit(
        self, changes: Changes, jobs: Sequence[NewJob] = (), *, ends: Ending | None = None, connection: Any = None
    ) -> None:
        """
        Write changes, jobs, and the success of the job they were made in: all of it or nothing.

        It is not cancelled halfway, as nobody could tell then what has been written; it has a limit of its own.

        Args:
            changes: Of one command.
            jobs: To add.
            ends: The claim that ends with it; nothing is written unless it still holds.
            connection: Write in this connection's transaction, which is the caller's to commit.

        Raises:
            ClaimLostError, OptimisticConcurrencyError, DuplicateOperationError, DeadlinePassedError, StreamGrownError:
                nothing was written. A conflict that has the driver's error as its cause is one that the snapshot of the
                caller's transaction does not show: that transaction has failed.
            DatabaseUnavailableError: nothing was written.
            CommitUnknownError: the connection broke and it cannot be told.
        """
        ...


class Transactions(Protocol):
    """Transactions that handlers write in."""

    def begin(self, *, read_committed: bool = False) -> AbstractAsyncContextManager[Any]:
        """
        A connection in a transaction, committed at the end of the block.

        Args:
            read_committed: Each statement sees what was committed before it, whatever is set for the role.
        """
        ...

    async def lock(self, connection: Any, stream: StreamId) -> None:
        """Keep others from writing to a stream until the connection's transaction has ended."""
        ...


class JobUnitOfWork:
    """
    Implements :class:`~eventflow.commands.UnitOfWork`.

    Attributes:
        jobs: What was scheduled, encoded.
        is_committed: Everything was written.
        next_step: Where a subscriber that takes events in order goes from here: asked before each try to commit.
    """

    def __init__(
        self,
        units: "UnitsOfWork",
        cause: Causation,
        write: Write,
        *,
        connection: Any = None,
        job_id: JobId | None = None,
        deadline: Deadline | None = None,
        admitted: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.cause = cause
        self.job_id = job_id
        self.deadline = deadline
        self.jobs: list[NewJob] = []
        self.is_committed = False
        self.next_step: NextStep | None = None
        self._units = units
        self._write = write
        self._callers_connection = connection
        self._admitted = admitted
        self._transaction: AbstractAsyncContextManager[Any] | None = None
        self._connection: Any = None
        self._failed: OptimisticConcurrencyError | None = None

    def schedule(
        self, message: Message, *, deadline: Deadline | None = None, **options: Unpack[ScheduleOptions]
    ) -> JobId:
        job = self._units.encoder.encode(message, self.cause, deadline=deadline, **options)
        self.jobs.append(job)
        return job.id

    def unschedule(self, job_id: JobId) -> None:
        self.jobs[:] = [job for job in self.jobs if job.id != job_id]

    async def begin(self) -> None:
        if self._failed is not None:
            raise self._failed
        self.jobs.clear()
        await self.close()

    async def look(self, stream: StreamId | None, receipt: ReceiptKey, snapshot_version: int | None) -> History:
        async def read() -> History:
            return await self._units.events.look(
                stream, receipt, snapshot_version=snapshot_version, connection=self._callers_connection
            )

        patience = self._units.patience
        if patience is None or self.job_id is None or self._transaction is not None:
            return await read()  # somebody waits for the answer, or for what the transaction holds
        return await patience.read(stream or receipt, read)

    async def admitted(self) -> None:
        if self._admitted is not None:
            await self._admitted()

    async def transaction(self) -> Any:
        if self._callers_connection is not None:
            return self._callers_connection
        if self._units.transactions is None:
            raise EventFlowError("context.transaction() needs a database; this application keeps everything in memory")
        if self._transaction is None:
            transaction = self._units.transactions.begin(read_committed=True)  # a conflict is seen and tried again
            self._connection = await transaction.__aenter__()
            self._transaction = transaction
        return self._connection

    @property
    def wants_commit(self) -> bool:
        """Whether something is left to commit, apart from the jobs."""
        return self._transaction is not None or (self.next_step is not None and not self.is_committed)

    async def lock(self, stream: StreamId) -> None:
        if self._units.transactions is not None:
            await self._units.transactions.lock(await self.transaction(), stream)

    async def commit(self, changes: Changes) -> None:
        try:
            await self._commit(changes)
        except BaseException as exc:
            self.jobs.clear()  # a job that finds its command done before succeeds, but without these
            if self._callers_connection is not None and isinstance(exc, OptimisticConcurrencyError) and exc.__cause__:
                self._failed = exc  # it would not be seen in the caller's transaction a second time either
            raise
        self.is_committed = True
        if self._callers_connection is None:
            await self._units.committed(changes)

    async def close(self) -> None:
        if self._transaction is not None:
            await self._end(_Undone())

    async def _commit(self, changes: Changes) -> None:
        jobs = [*self.jobs, *self._units.follow(changes)]
        if self.next_step is None:
            await self._write_all(changes, jobs)
            return
        while True:
            step, following = await self.next_step(self._connection)
            try:
                await self._write_all(
                    msgspec.structs.replace(changes, step=step), jobs if following is None else [*jobs, following]
                )
            except StreamGrownError:
                continue
            return

    async def _write_all(self, changes: Changes, jobs: Sequence[NewJob]) -> None:
        if self._transaction is None:
            await self._write(changes, jobs, self._callers_connection)
        else:
            with anyio.CancelScope(shield=True):  # half a commit would be an unknown one; each step has its own limit
                await self._commit_transaction(changes, jobs)

    async def _commit_transaction(self, changes: Changes, jobs: Sequence[NewJob]) -> None:
        try:
            await self._write(changes, jobs, self._connection)
        except StreamGrownError:
            raise  # nothing was written, and the transaction goes on
        except BaseException as exc:
            await self._end(exc)
            raise
        try:
            await self._end(None)
        except CommitUnknownError:
            # A receipt would not show that the claim of a job has ended too: another may have done the same command.
            if self.job_id is not None or not await self._units.was_written(changes):
                raise

    async def _end(self, error: BaseException | None) -> None:
        transaction, self._transaction, self._connection = self._transaction, None, None
        if transaction is None:
            return
        try:
            await transaction.__aexit__(None if error is None else type(error), error, None)
        except BaseException as exc:
            if exc is not error:
                raise


class _Undone(Exception):  # noqa: N818 - nobody sees it
    """Why a transaction is rolled back that nobody wants any more."""


async def _nothing_more(_: Changes) -> None:
    """What follows from a commit, by default."""


class UnitsOfWork:
    """
    Begins units of work.

    Args:
        encoder: Encodes what is scheduled.
        events: Where commands look.
        commits: Writes what they change.
        transactions: Those that handlers may ask for; ``None``: everything is in memory.
        patience: With which jobs look; ``None``: they fail at once, as direct callers do.
        follow: What follows from changes by itself.
        committed: Called after a commit that was not the caller's own.
    """

    def __init__(
        self,
        encoder: JobEncoder,
        events: EventStore,
        commits: Commits,
        *,
        transactions: Transactions | None = None,
        patience: Patience | None = None,
        follow: Follow = lambda _: (),
        committed: Callable[[Changes], Awaitable[None]] = _nothing_more,
    ) -> None:
        self.encoder = encoder
        self.events = events
        self.patience = patience
        self.transactions = transactions
        self.follow = follow
        self.committed = committed
        self._commits = commits

    def __call__(self, cause: Causation, *, connection: Any = None) -> JobUnitOfWork:
        """Of a direct caller."""
        return JobUnitOfWork(self, cause, self._write, connection=connection)

    def of_job(
        self,
        cause: Causation,
        job_id: JobId,
        write: Write | None,
        *,
        deadline: Deadline | None = None,
        admitted: Callable[[], Awaitable[None]] | None = None,
    ) -> JobUnitOfWork:
        """Of one attempt of a job; *write* ends its claim too, and *admitted* waits until its handler may run."""
        return JobUnitOfWork(self, cause, write or self._write, job_id=job_id, deadline=deadline, admitted=admitted)

    async def _write(self, changes: Changes, jobs: Sequence[NewJob], connection: Any) -> None:
        try:
            await self._commits.commit(changes, jobs, connection=connection)
        except CommitUnknownError:
            if not await self.was_written(changes):
                raise

    async def was_written(self, changes: Changes) -> bool:
        """Whether there is a receipt now, after a commit whose answer was lost; false if it cannot be told."""
        if changes.receipt is None:
            return False
        try:
            return (await self.events.look(None, changes.receipt.key)).result is not None
        except EventFlowError:
            return False


def nothing_of(source_id: str) -> Changes:
    """No changes, made by somebody."""
    return Changes(metadata=EventMetadata(source_id=source_id))
