"""Commits what one command or job writes: one statement, one transaction."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio
import asyncpg

from eventflow.errors import (
    ClaimLostError,
    CommitUnknownError,
    DatabaseError,
    DeadlinePassedError,
    OptimisticConcurrencyError,
    StreamGrownError,
)
from eventflow.eventstore import Changes, Deadline, ReceiptKey, Step
from eventflow.failpoints import failpoint
from eventflow.jobs import Ending, NewJob
from eventflow.postgres.connection import AnyConnection, Lanes
from eventflow.postgres.queues import Queues
from eventflow.postgres.rows import insert_arguments
from eventflow.postgres.statements import statement
from eventflow.postgres.transactions import Transactions
from eventflow.postgres.translation import DRIVER_ERRORS, may_have_committed, translate
from eventflow.serialization import encode_plain

MOST_SHARED = 64
"""Commands in one commit."""
SHARED_AT_A_TIME = 2
"""Such commits: while one waits for the disk, the next is at work."""


class _Call:
    """A commit that somebody waits for."""

    def __init__(self, arguments: Sequence[Any], changes: Changes, jobs: Sequence[NewJob], ends: Ending | None) -> None:
        self.arguments = arguments
        self.changes = changes
        self.ids = [job.id for job in jobs]
        self.ends = ends
        self.sent = anyio.Event()
        self.row: asyncpg.Record | None = None
        self.error: DatabaseError | None = None

    @property
    def is_done(self) -> bool:
        """Whether there is an answer."""
        return self.row is not None or self.error is not None

    @property
    def is_busy(self) -> bool:
        """Whether somebody else was writing to its stream."""
        return self.row is not None and self.row["status"] == "busy"


class PostgresCommits:
    """
    Implements :class:`~eventflow.jobs.Commits`.

    While commits are under way, those that arrive wait together and become one transaction, sent as one message: each
    is all or nothing by itself, as none writes before it has checked everything. One that would have to wait for
    another writer of its stream goes alone.

    Args:
        lanes: Connections of their own, so that no commit waits for a load.
        transactions: Those that others may have opened.
        committed: Called after a commit with the time until the first of its jobs.
    """

    def __init__(
        self,
        lanes: Lanes,
        queues: Queues,
        schema: str,
        *,
        transactions: Transactions,
        committed: Callable[[int], None],
    ) -> None:
        self._lanes = lanes
        self._queues = queues
        self._schema = schema
        self._transactions = transactions
        self._committed = committed
        self._waiting: list[_Call] = []
        self._sharers = anyio.Semaphore(SHARED_AT_A_TIME, fast_acquire=True)
        self._loners = anyio.Semaphore(max(1, lanes.number - SHARED_AT_A_TIME), fast_acquire=True)

    async def commit(
        self, changes: Changes, jobs: Sequence[NewJob] = (), *, ends: Ending | None = None, connection: Any = None
    ) -> None:
        with anyio.CancelScope(shield=True):
            call = _Call(commit_arguments(changes, jobs, await self._queues.ids(jobs), ends), changes, jobs, ends)
            if connection is None:
                await self._commit(call)
            else:
                await self._write(connection, call)

    async def _commit(self, call: _Call) -> None:
        await self._share(call)
        if not call.is_done or call.is_busy:
            async with self._loners:
                await self._send([call], patient=True)
        if call.error is not None:
            raise call.error
        soonest_us = _checked(call.row, call.changes, call.ends)
        if soonest_us is not None:
            self._committed(soonest_us)

    async def _share(self, call: _Call) -> None:
        """Have a call written with those that wait too; it may end without an answer."""
        self._waiting.append(call)
        async with self._sharers:
            if call in self._waiting:
                await self._send_waiting()
        if not call.sent.is_set():
            await call.sent.wait()

    async def _send_waiting(self) -> None:
        taken, self._waiting = self._waiting[:MOST_SHARED], self._waiting[MOST_SHARED:]
        try:
            await self._send(taken, patient=False)
        finally:
            for call in taken:
                call.sent.set()

    async def _send(self, calls: Sequence[_Call], *, patient: bool) -> None:
        """Write these calls in one transaction; where one of several is refused, all are left without an answer."""
        sent = False
        try:
            async with self._lanes.connection() as own:
                sent = True
                failpoint("commit.sending")
                query, arguments = statement("commit_changes", self._schema), [(patient, *c.arguments) for c in calls]
                rows = await (own.fetchmany(query, arguments) if len(calls) > 1 else own.fetch(query, *arguments[0]))
                failpoint("commit.committed")
        except DatabaseError as exc:
            self._fail(calls, exc, is_unknown=sent and exc.__cause__ is not None and may_have_committed(exc.__cause__))
        else:
            for call, row in zip(calls, rows, strict=True):
                call.row, call.error = row, None

    def _fail(self, calls: Sequence[_Call], error: DatabaseError, *, is_unknown: bool) -> None:
        if not is_unknown and len(calls) > 1:
            return  # one of them is at fault: each goes alone
        for call in calls:
            call.row, call.error = None, error
            if is_unknown:
                call.error = CommitUnknownError(call.ids)
                call.error.__cause__ = error

    async def _write(self, connection: AnyConnection, call: _Call) -> None:
        """The same in the caller's transaction, whose errors are his to roll back."""
        failpoint("changes.sending")
        try:
            [row] = await connection.fetch(statement("commit_changes", self._schema), True, *call.arguments)
        except asyncpg.UniqueViolationError as exc:
            if exc.constraint_name == "event_pkey":  # its snapshot is older
                raise OptimisticConcurrencyError(call.changes.stream, call.changes.expected_version) from exc
            raise translate(exc, self._schema) from exc
        except DRIVER_ERRORS as exc:
            raise translate(exc, self._schema) from exc
        failpoint("changes.written")
        soonest_us = _checked(row, call.changes, call.ends)
        transaction = self._transactions.find(connection)
        if transaction is not None:
            transaction.add(call.ids, soonest_us)


def commit_arguments(
    changes: Changes, jobs: Sequence[NewJob], queue_ids: Mapping[str, int], ends: Ending | None
) -> tuple[Any, ...]:
    """The arguments of ``commit_changes.sql``, from the second on."""
    stream, receipt, snapshot = changes.stream, changes.receipt, changes.snapshot
    events, deadlines = changes.events, changes.deadlines
    return (
        *_ending_arguments(ends),
        None if stream is None else stream.aggregate_name,
        None if stream is None else stream.aggregate_id,
        changes.expected_version,
        [event.id.uuid for event in events],
        [event.name for event in events],
        [event.version for event in events],
        [event.data.decode() for event in events],
        encode_plain(changes.metadata).decode(),
        *((None,) * 4 if receipt is None else (*_key(receipt.key), receipt.result.decode())),
        *_deadline_arguments(changes.fires),
        list(deadlines),
        [None if job_id is None else job_id.uuid for job_id in deadlines.values()],
        None if snapshot is None else snapshot.version,
        None if snapshot is None else snapshot.data.decode(),
        *_step_arguments(changes.step),
        *_line_arguments(jobs),
        *insert_arguments(jobs, queue_ids),
    )


def _ending_arguments(ends: Ending | None) -> tuple[Any, ...]:
    if ends is None:
        return (None,) * 5
    settlement = ends.settlement
    return (
        ends.worker_id.uuid,
        settlement.claim.id.uuid,
        settlement.claim.claim_no,
        settlement.started_us,
        settlement.retention_days,
    )


def _deadline_arguments(fires: Deadline | None) -> tuple[Any, ...]:
    return (None,) * 3 if fires is None else (fires.stream.aggregate_name, fires.stream.aggregate_id, fires.name)


def _step_arguments(step: Step | None) -> tuple[Any, ...]:
    if step is None:
        return (None,) * 5
    following = None if step.following is None else step.following.uuid
    return step.subscriber, step.stream.aggregate_name, step.stream.aggregate_id, following, step.stream_version


def _line_arguments(jobs: Sequence[NewJob]) -> tuple[list[str | None], list[int | None]]:
    if not any(job.line for job in jobs):
        return [], []
    lines = [job.line for job in jobs]
    return [line and line.subscriber for line in lines], [line and line.stream_version for line in lines]


def _key(key: ReceiptKey) -> tuple[str, str, str]:
    return key.scope, key.aggregate_id, key.source_id


def _checked(row: asyncpg.Record | None, changes: Changes, ends: Ending | None) -> int | None:
    """The microseconds until the first job is ready, if everything was written; else the error that says why not."""
    if row is None:
        raise DatabaseError("the commit has no answer")
    status, soonest_us = row["status"], row["soonest_us"]
    if status == "lost" and ends is not None:
        raise ClaimLostError(ends.settlement.claim.id, ends.settlement.claim.claim_no)
    if status == "conflict":
        raise OptimisticConcurrencyError(changes.stream, changes.expected_version)
    if status == "duplicate" and changes.receipt is not None:
        raise changes.receipt.key.duplicate()
    if status == "passed" and changes.fires is not None:
        raise DeadlinePassedError(changes.fires.stream, changes.fires.name)
    if status == "grown":
        raise StreamGrownError
    return soonest_us
