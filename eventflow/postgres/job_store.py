"""The job store on Postgres."""

import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager

import anyio
import asyncpg

from eventflow.errors import CommitUnknownError, DatabaseError, DatabaseUnavailableError, LeaseLostError, LockBusyError
from eventflow.failpoints import failpoint
from eventflow.ids import JobId, WorkerId
from eventflow.jobs import (
    CancelOutcome,
    ClaimBatch,
    ClaimedJob,
    Interest,
    JobRecord,
    JobState,
    NewJob,
    Outcome,
    Peer,
    RescheduleOutcome,
    Settlement,
    Signal,
    Tick,
    WorkerRecord,
)
from eventflow.postgres.bounds import LowerBounds
from eventflow.postgres.connection import STATEMENT_SECONDS, AnyConnection, Connection, Connector, Lane
from eventflow.postgres.group_insert import GroupInsert
from eventflow.postgres.migrator import check_version
from eventflow.postgres.queues import Queues
from eventflow.postgres.rows import COPY_COLUMNS, claimed_job, copy_rows, insert_arguments, job_record
from eventflow.postgres.statements import statement
from eventflow.postgres.transactions import atomic
from eventflow.postgres.translation import DRIVER_ERRORS, came_after_commit, may_have_committed, translate
from eventflow.postgres.wakes import WAKE_WITHIN_US, Notified, Wakes
from eventflow.scheduling import Due

log = logging.getLogger("eventflow.postgres")

COPY_FROM = 300
"""Jobs from which on COPY is faster than arrays."""
COPY_BYTES_PER_SECOND = 1_000_000
"""What the slowest network carries: COPY may take that much longer than another statement."""
INSERT_IDLE_SECONDS = 1.0
"""An insert that was sent into a dead connection may have arrived, for all its caller can know: so try it out first."""
LOOKUP_SECONDS = 2.0
"""How long to look for the jobs of an insert whose answer was lost; its caller waits."""
MOVES = 3
"""How often to look for a job that was not found: it may have moved between the tables meanwhile."""
RECEIPT_DAYS = 30
"""How long it is remembered that a command was done."""
RESCUE_LOCK = "SET LOCAL lock_timeout = '200ms'"
"""A worker whose claim is stuck holds its row: it is rescued at a later look, and nothing waits behind that."""


class PostgresJobStore:
    """
    A :class:`~eventflow.jobs.store.JobStore` on Postgres.

    It has a connection for each thing that must not wait for another: inserting, looking jobs up, claiming, ending
    claims, and watching the time and the other workers. Each is opened when first used.

    Attributes:
        queues: Their numbers.

    Args:
        connect: Opens a connection.
        schema: Where the tables are.
        wakes: Who is told of commits; nobody if left out.
        watching: The connection for watching, if the caller has one to share.
    """

    def __init__(
        self,
        connect: Connector,
        schema: str,
        *,
        wakes: Wakes | None = None,
        watching: Lane | None = None,
    ) -> None:
        self._schema = schema
        self._wakes = wakes or Wakes()
        self._inserting = Lane(connect, schema, idle=INSERT_IDLE_SECONDS)
        self._claiming = Lane(connect, schema)
        self._settling = Lane(connect, schema)
        self._looking = Lane(connect, schema)
        self._watching = watching or Lane(connect, schema)
        self._group = GroupInsert(self._insert_now)
        self.queues = Queues(self._inserting, schema)
        self._bounds = LowerBounds()

    async def close(self) -> None:
        """Close the connections."""
        for lane in self._lanes():
            await lane.close()

    def terminate(self) -> None:
        """Drop those that are left."""
        for lane in self._lanes():
            lane.terminate()

    def _lanes(self) -> Sequence[Lane]:
        return self._inserting, self._looking, self._claiming, self._settling, self._watching

    async def check_version(self) -> None:
        """Raise :class:`SchemaVersionError` unless tables and code fit."""
        async with self._looking.connection() as connection:
            await check_version(connection, self._schema)

    def _sql(self, name: str) -> str:
        return statement(name, self._schema)

    # Scheduling

    async def insert(self, jobs: Sequence[NewJob]) -> None:
        await self._group.insert(jobs)

    async def _insert_now(self, jobs: Sequence[NewJob]) -> None:
        """Insert and commit, and resolve a commit whose answer was lost."""
        queue_ids, ids = await self.queues.ids(jobs), [job.id for job in jobs]
        wakes_itself = len(jobs) < COPY_FROM and self._wakes.may_notify()
        try:
            async with self._committing(self._inserting, ids, goes_on=wakes_itself) as connection:
                failpoint("insert.sending")
                if wakes_itself:
                    soonest_us, notified = await self._write_and_wake(connection, jobs, queue_ids)
                else:
                    soonest_us, notified = await self._write(connection, jobs, queue_ids), None
                failpoint("insert.committed")
        except CommitUnknownError:
            if not await self._exist(jobs):
                raise
            soonest_us, notified = 0, None
        self._wakes.committed(soonest_us, notified=notified)

    @asynccontextmanager
    async def _committing(
        self, lane: Lane, ids: Sequence[JobId], *, goes_on: bool = False
    ) -> AsyncGenerator[Connection]:
        """
        The connection for a statement that commits; one whose answer is lost is a CommitUnknownError.

        Args:
            goes_on: The statement does more after its commit, and may fail in that.
        """
        sent = False
        try:
            async with lane.connection() as connection:
                sent = True
                yield connection
        except DatabaseError as exc:
            error = exc.__cause__
            if sent and error is not None and (may_have_committed(error) or (goes_on and came_after_commit(error))):
                raise CommitUnknownError(ids) from exc
            raise

    async def insert_in(self, connection: AnyConnection, jobs: Sequence[NewJob]) -> int:
        """
        Add jobs in the caller's transaction; returns the microseconds until the first of them is ready.

        Errors of the transaction are the caller's to roll back.
        """
        queue_ids = await self.queues.ids(jobs)
        try:
            return await self._write(connection, jobs, queue_ids)
        except DRIVER_ERRORS as exc:
            raise translate(exc, self._schema) from exc

    async def notify_in(self, connection: AnyConnection) -> None:
        """Wake workers with the commit of the caller's transaction."""
        try:
            await connection.execute(self._sql("notify_workers"))
        except DRIVER_ERRORS as exc:
            raise translate(exc, self._schema) from exc

    async def _write(self, connection: AnyConnection, jobs: Sequence[NewJob], queue_ids: Mapping[str, int]) -> int:
        if len(jobs) < COPY_FROM:
            soonest_us: int = await connection.fetchval(self._sql("insert_jobs"), *insert_arguments(jobs, queue_ids))
            return soonest_us
        async with connection.transaction():  # the time is read within it
            now_us: int = await connection.fetchval(self._sql("select_time"))
            await connection.copy_records_to_table(
                "job",
                schema_name=self._schema,
                columns=COPY_COLUMNS,
                records=copy_rows(jobs, queue_ids, now_us),
                timeout=STATEMENT_SECONDS + sum(len(job.payload) + 1000 for job in jobs) / COPY_BYTES_PER_SECOND,
            )
        return min(d.at_us - now_us if d.at_us is not None else d.delay_us or 0 for d in (job.due for job in jobs))

    async def _write_and_wake(
        self, connection: Connection, jobs: Sequence[NewJob], queue_ids: Mapping[str, int]
    ) -> tuple[int, Notified | None]:
        """In one round trip; ``None``: there is nobody to wake."""
        arguments = insert_arguments(jobs, queue_ids)
        [row] = await connection.fetch(self._sql("insert_and_wake"), *arguments, WAKE_WITHIN_US)
        return row["soonest_us"], None if row["is_done"] is None else Notified(row["is_done"], row["wait_us"])

    async def _exist(self, jobs: Sequence[NewJob]) -> bool:
        """Whether an insert whose answer was lost was committed; false if it cannot be told."""
        with anyio.move_on_after(LOOKUP_SECONDS):
            try:
                rows = await self._inserting.fetch(self._sql("select_existing_jobs"), [job.id.uuid for job in jobs])
            except DatabaseUnavailableError:
                return False
            return bool(rows)
        return False

    async def cancel(self, job_id: JobId) -> CancelOutcome:
        for _ in range(MOVES):
            async with self._committing(self._looking, [job_id]) as connection:
                [row] = await connection.fetch(self._sql("cancel_job"), job_id.uuid)
            if row["cancelled"]:
                return CancelOutcome.CANCELLED
            if row["requested"]:
                self._wakes.signal()
                return CancelOutcome.REQUESTED
        return CancelOutcome.NOT_FOUND

    async def reschedule(self, job_id: JobId, due: Due) -> RescheduleOutcome:
        for _ in range(MOVES):
            async with self._committing(self._looking, [job_id]) as connection:
                [row] = await connection.fetch(self._sql("reschedule_job"), job_id.uuid, due.at_us, due.delay_us)
            if row["rescheduled"]:
                self._wakes.committed()
                return RescheduleOutcome.RESCHEDULED
            if row["requested"]:
                self._wakes.signal()
                return RescheduleOutcome.REQUESTED
        return RescheduleOutcome.NOT_FOUND

    async def get(self, job_id: JobId) -> JobRecord | None:
        row = await self._looking.fetchrow(self._sql("get_job"), job_id.uuid)
        return None if row is None else job_record(row)

    async def find(
        self, *, state: JobState | None = None, queue: str | None = None, name: str | None = None, limit: int = 100
    ) -> Sequence[JobRecord]:
        rows = await self._looking.fetch(
            self._sql("find_jobs"), None if state is None else state.value, queue, name, limit
        )
        return [job_record(row) for row in rows]

    # Working

    async def open_worker(self, worker: WorkerRecord) -> None:
        queues = None if worker.queues is None else list(worker.queues)
        await self._watching.fetch(
            self._sql("open_worker"),
            worker.id.uuid,
            worker.host,
            worker.pid,
            worker.version,
            queues,
            worker.concurrency,
        )

    async def beat(self, worker_id: WorkerId, session: tuple[int, str] | None = None) -> bool:
        """*session*: the advisory lock that shows the worker's process to be there, and the server it is on."""
        key, server = session or (None, None)
        row = await self._watching.fetchrow(self._sql("beat_worker"), worker_id.uuid, key, server)
        return row is not None

    async def now_us(self) -> int:
        [row] = await self._watching.fetch(self._sql("read_clock"))
        now_us: int = row["now_us"]
        return now_us

    async def tick(self, worker_id: WorkerId, interest: Interest) -> Tick:
        [row] = await self._watching.fetch(
            self._sql("tick_worker"),
            worker_id.uuid,
            interest.queues,
            interest.names,
            interest.versions,
            self._bounds.settled_xid,
            self._bounds.bounds_us,
        )
        self._learn(row["looked_us"], row)
        peers = zip(row["peers"], row["beats"], row["gone"], strict=True)
        signals = zip(row["signal_jobs"], row["signal_claims"], row["signal_kinds"], row["signal_dues"], strict=True)
        return Tick(
            now_us=row["now_us"],
            next_us=row["next_us"],
            open=row["open"],
            blocked=row["blocked"],
            parked=row["parked"],
            suspect_us=row["suspect_us"],
            my_turn=row["my_turn"],
            server=row["server"],
            peers=[Peer(WorkerId.of(peer), beat, gone) for peer, beat, gone in peers],
            signals=[Signal(JobId.of(job), claim_no, kind, due_us) for job, claim_no, kind, due_us in signals],
        )

    async def claim(
        self, worker_id: WorkerId, interest: Interest, *, ready: int, ahead: int, horizon_us: int, parked: bool = False
    ) -> ClaimBatch:
        return await self._claim(
            worker_id, interest, ready=ready, ahead=ahead, horizon_us=horizon_us, parked=parked, suspect=False
        )

    async def claim_suspect(self, worker_id: WorkerId, interest: Interest) -> ClaimBatch:
        return await self._claim(worker_id, interest, ready=1, ahead=0, horizon_us=0, parked=False, suspect=True)

    async def _claim(
        self,
        worker_id: WorkerId,
        interest: Interest,
        *,
        ready: int,
        ahead: int,
        horizon_us: int,
        parked: bool,
        suspect: bool,
    ) -> ClaimBatch:
        rows = await self._claiming.fetch(
            self._sql("claim_jobs"),
            worker_id.uuid,
            interest.queues,
            interest.names,
            interest.versions,
            ready,
            ahead,
            horizon_us,
            parked,
            suspect,
            self._bounds.look_from_us,
            self._bounds.settled_xid,
            self._bounds.bounds_us,
        )
        answer = rows[0]
        if not answer["open"]:
            raise LeaseLostError(f"{worker_id} has been closed")
        if answer["oldest_xid"] is not None:
            self._learn(answer["split_us"], answer)
        return ClaimBatch(
            now_us=rows[-1]["now_us"],
            split_us=answer["split_us"],
            jobs=[claimed_job(row) for row in rows[1:]],
            next_us=answer["next_us"],
        )

    def _learn(self, at_us: int, look: asyncpg.Record) -> None:
        left_us = dict(zip(look["left_ranges"], look["left_us"], strict=True))
        self._bounds.learn(
            at_us,
            open_xid=look["open_xid"],
            oldest_xid=look["oldest_xid"],
            next_xid=look["next_xid"],
            left_us=left_us,
        )

    async def park_unknown(self, interest: Interest) -> int:
        [row] = await self._watching.fetch(
            self._sql("park_unknown_jobs"), interest.queues, interest.names, interest.versions, self._bounds.bounds_us
        )
        parked: int = row["parked"]
        if parked:
            self._wakes.signal()  # others look at once whether they know them
        return parked

    async def sweep(self) -> int:
        if not self._bounds.may_have_passed_jobs:
            return 0
        open_xid = self._bounds.open_xid
        [row] = await self._watching.fetch(self._sql("sweep_jobs"), self._bounds.bounds_us)
        self._bounds.swept(open_xid)
        swept: int = row["swept"]
        mended: int = row["mended"]
        if swept or mended:
            log.info("job.swept", extra={"jobs": swept, "lines": mended})
            self._wakes.committed()
        return swept + mended

    async def claims(self, worker_id: WorkerId, known: Sequence[JobId]) -> Sequence[ClaimedJob]:
        rows = await self._claiming.fetch(self._sql("select_claims"), worker_id.uuid, [job_id.uuid for job_id in known])
        return [claimed_job(row) for row in rows]

    async def settle(self, worker_id: WorkerId, settlements: Sequence[Settlement]) -> set[JobId]:
        ended: list[Settlement] = []
        waiting: list[Settlement] = []
        dead: list[Settlement] = []
        for settlement in settlements:
            if settlement.outcome in (Outcome.RETRY, Outcome.RELEASED):
                waiting.append(settlement)
            else:
                (dead if settlement.outcome is Outcome.DEAD else ended).append(settlement)
        follow_ups = [job for settlement in ended for job in settlement.follow_ups]
        queue_ids = await self.queues.ids(follow_ups)
        async with self._settling.connection() as connection:
            if ended and not (waiting or dead or follow_ups):
                return await self._complete(connection, worker_id, ended)  # most batches: one statement
            async with atomic(connection):
                settled = await self._complete(connection, worker_id, ended) if ended else set[JobId]()
                settled |= await self._return(connection, worker_id, waiting) if waiting else set[JobId]()
                settled |= await self._bury(connection, worker_id, dead) if dead else set[JobId]()
                follow_ups = [job for s in ended if s.claim.id in settled for job in s.follow_ups]
                failpoint("settle.follow_ups")
                if follow_ups:
                    await self._write(connection, follow_ups, queue_ids)
        if follow_ups or waiting:
            self._wakes.committed()
        return settled

    async def _complete(
        self, connection: Connection, worker_id: WorkerId, settlements: Sequence[Settlement]
    ) -> set[JobId]:
        rows = await connection.fetch(
            self._sql("complete_jobs"),
            worker_id.uuid,
            [s.claim.id.uuid for s in settlements],
            [s.claim.claim_no for s in settlements],
            [s.outcome.value for s in settlements],
            [s.started_us for s in settlements],
            [s.retention_days for s in settlements],
            [s.error for s in settlements],
        )
        ended = {s.claim.id for s in settlements}
        return ended.difference(JobId.of(row["id"]) for row in rows) if rows else ended

    async def _return(
        self, connection: Connection, worker_id: WorkerId, settlements: Sequence[Settlement]
    ) -> set[JobId]:
        rows = await connection.fetch(
            self._sql("return_jobs"),
            worker_id.uuid,
            [s.claim.id.uuid for s in settlements],
            [s.claim.claim_no for s in settlements],
            [None if s.due is None else s.due.at_us for s in settlements],
            [None if s.due is None else s.due.delay_us for s in settlements],
            [int(s.outcome is Outcome.RELEASED) for s in settlements],
            [s.started_us for s in settlements],
            [s.error for s in settlements],
        )
        return _job_ids(rows)

    async def _bury(self, connection: Connection, worker_id: WorkerId, settlements: Sequence[Settlement]) -> set[JobId]:
        rows = await connection.fetch(
            self._sql("bury_jobs"),
            worker_id.uuid,
            [s.claim.id.uuid for s in settlements],
            [s.claim.claim_no for s in settlements],
            [s.reason or "error" for s in settlements],
            [s.started_us for s in settlements],
            [s.error for s in settlements],
        )
        return _job_ids(rows)

    async def rescue(self, peer: Peer) -> int | None:
        try:
            return await self._close_worker(peer.worker_id, beat=peer.beat, crashed=True)
        except LockBusyError:
            return None

    async def close_worker(self, worker_id: WorkerId) -> int:
        return await self._close_worker(worker_id, beat=None, crashed=False) or 0

    async def _close_worker(self, worker_id: WorkerId, *, beat: int | None, crashed: bool) -> int | None:
        # Read committed: the claims that closing waited for are seen by the statement after it.
        async with self._watching.connection() as connection, atomic(connection):
            failpoint("rescue.closing")
            await connection.execute(RESCUE_LOCK)
            if await connection.fetchval(self._sql("close_worker"), worker_id.uuid, beat) is None:
                return None
            failpoint("rescue.closed")
            released: int = await connection.fetchval(self._sql("release_claims"), worker_id.uuid, crashed)
        failpoint("rescue.committed")
        if released:
            self._wakes.committed()
        return released

    async def maintain(self, retention_days: Sequence[int]) -> None:
        await self._watching.fetch(self._sql("maintain_history"), list(retention_days))
        await self._watching.fetch(self._sql("delete_closed_workers"))
        forgotten = 1
        while forgotten:
            [row] = await self._watching.fetch(self._sql("forget_receipts"), RECEIPT_DAYS)
            forgotten = row["forgotten"]


def _job_ids(rows: Sequence[asyncpg.Record]) -> set[JobId]:
    return {JobId.of(str(row["id"])) for row in rows}
