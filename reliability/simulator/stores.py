"""The ports of the stores, as a process sees them over its link."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar

from eventflow import CommitUnknownError, DatabaseUnavailableError, JobId, WorkerId
from eventflow.eventstore import Changes, History, Page, ReceiptKey, StoredEvent, StreamId
from eventflow.jobs import (
    CancelOutcome,
    ClaimBatch,
    ClaimedJob,
    Ending,
    Interest,
    JobRecord,
    JobState,
    NewJob,
    Peer,
    RescheduleOutcome,
    Settlement,
    Tick,
    WorkerRecord,
)
from eventflow.postgres.wakes import Wakes
from eventflow.scheduling import Due
from reliability.simulator.link import Link, LostError

T = TypeVar("T")
P = ParamSpec("P")


async def read(link: Link, call: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """A call that may be repeated: one without an answer is a DatabaseUnavailableError."""
    try:
        return await link.call(call, *args, **kwargs)
    except LostError as exc:
        raise DatabaseUnavailableError(str(exc)) from exc


async def commit(
    link: Link, ids: Sequence[str], call: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
) -> T:
    """A call that commits: one without an answer is a CommitUnknownError."""
    try:
        return await link.call(call, *args, **kwargs)
    except LostError as exc:
        if exc.was_sent:
            raise CommitUnknownError(ids) from exc
        raise DatabaseUnavailableError(str(exc)) from exc


class LinkedJobStore:
    """Implements :class:`~eventflow.jobs.store.JobStore`."""

    def __init__(self, link: Link, wakes: Wakes) -> None:
        self._link = link
        self._jobs = link.server.jobs
        self._wakes = wakes

    async def insert(self, jobs: Sequence[NewJob]) -> None:
        await commit(self._link, [job.id for job in jobs], self._jobs.insert, jobs)
        self._wakes.committed()

    async def cancel(self, job_id: JobId) -> CancelOutcome:
        outcome = await commit(self._link, [job_id], self._jobs.cancel, job_id)
        if outcome is CancelOutcome.REQUESTED:
            self._wakes.signal()
        return outcome

    async def reschedule(self, job_id: JobId, due: Due) -> RescheduleOutcome:
        outcome = await commit(self._link, [job_id], self._jobs.reschedule, job_id, due)
        if outcome is RescheduleOutcome.REQUESTED:
            self._wakes.signal()
        elif outcome is RescheduleOutcome.RESCHEDULED:
            self._wakes.committed()
        return outcome

    async def get(self, job_id: JobId) -> JobRecord | None:
        return await read(self._link, self._jobs.get, job_id)

    async def find(
        self, *, state: JobState | None = None, queue: str | None = None, name: str | None = None, limit: int = 100
    ) -> Sequence[JobRecord]:
        return await read(self._link, self._jobs.find, state=state, queue=queue, name=name, limit=limit)

    async def open_worker(self, worker: WorkerRecord) -> None:
        await read(self._link, self._jobs.open_worker, worker)

    async def beat(self, worker_id: WorkerId, session: tuple[int, str] | None = None) -> bool:
        return await read(self._link, self._link.server.beat, worker_id, session)

    async def now_us(self) -> int:
        return await read(self._link, self._jobs.now_us)

    async def tick(self, worker_id: WorkerId, interest: Interest) -> Tick:
        return await read(self._link, self._jobs.tick, worker_id, interest)

    async def claim(
        self, worker_id: WorkerId, interest: Interest, *, ready: int, ahead: int, horizon_us: int, parked: bool = False
    ) -> ClaimBatch:
        return await read(
            self._link,
            self._jobs.claim,
            worker_id,
            interest,
            ready=ready,
            ahead=ahead,
            horizon_us=horizon_us,
            parked=parked,
        )

    async def claim_suspect(self, worker_id: WorkerId, interest: Interest) -> ClaimBatch:
        return await read(self._link, self._jobs.claim_suspect, worker_id, interest)

    async def park_unknown(self, interest: Interest) -> int:
        parked = await read(self._link, self._jobs.park_unknown, interest)
        if parked:
            self._wakes.committed()
        return parked

    async def sweep(self) -> int:
        return await read(self._link, self._jobs.sweep)

    async def claims(self, worker_id: WorkerId, known: Sequence[JobId]) -> Sequence[ClaimedJob]:
        return await read(self._link, self._jobs.claims, worker_id, known)

    async def settle(self, worker_id: WorkerId, settlements: Sequence[Settlement]) -> set[JobId]:
        settled = await read(self._link, self._jobs.settle, worker_id, settlements)
        self._wakes.committed()
        return settled

    async def rescue(self, peer: Peer) -> int | None:
        rescued = await read(self._link, self._jobs.rescue, peer)
        self._wakes.committed()
        return rescued

    async def close_worker(self, worker_id: WorkerId) -> int:
        released = await read(self._link, self._jobs.close_worker, worker_id)
        self._wakes.committed()
        return released

    async def maintain(self, retention_days: Sequence[int]) -> None:
        await read(self._link, self._jobs.maintain, retention_days)


class LinkedEventStore:
    """Implements :class:`~eventflow.eventstore.EventStore`, as far as commands and subscribers use it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._events = link.server.events

    async def load(
        self, stream: StreamId, *, after: int = 0, limit: int | None = None, connection: Any = None
    ) -> Sequence[StoredEvent]:
        return await read(self._link, self._events.load, stream, after=after, limit=limit)

    async def look(
        self,
        stream: StreamId | None,
        receipt: ReceiptKey,
        *,
        snapshot_version: int | None = None,
        connection: Any = None,
    ) -> History:
        return await read(self._link, self._events.look, stream, receipt, snapshot_version=snapshot_version)

    async def append(self, changes: Changes, *, connection: Any = None) -> None:
        await commit(self._link, (), self._events.append, changes)

    async def read_all(self, cursor: str = "", *, limit: int = 1000) -> Page:
        return await read(self._link, self._events.read_all, cursor, limit=limit)


class LinkedCommits:
    """Implements :class:`~eventflow.jobs.Commits`."""

    def __init__(self, link: Link, wakes: Wakes) -> None:
        self._link = link
        self._wakes = wakes

    async def commit(
        self, changes: Changes, jobs: Sequence[NewJob] = (), *, ends: Ending | None = None, connection: Any = None
    ) -> None:
        await commit(self._link, [job.id for job in jobs], self._link.server.commits.commit, changes, jobs, ends=ends)
        self._wakes.committed()
