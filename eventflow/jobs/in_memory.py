"""The job store in memory: for tests, prototypes and simulation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import log2
from typing import Any

import msgspec

from eventflow.clock import Clock, to_datetime, to_microseconds
from eventflow.errors import DatabaseError, LeaseLostError
from eventflow.eventstore import StreamId
from eventflow.ids import JobId, WorkerId
from eventflow.jobs.records import (
    DEADLY_CRASHES,
    LOOKAHEAD_US,
    SUSPECT_CRASHES,
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
from eventflow.scheduling import Due

_DAY_US = 24 * 60 * 60 * 1_000_000
_LIVE = (JobState.WAITING, JobState.RUNNING, JobState.DEAD)
_ENDED = {
    Outcome.SUCCEEDED: JobState.SUCCEEDED,
    Outcome.IGNORED: JobState.IGNORED,
    Outcome.CANCELLED: JobState.CANCELLED,
    Outcome.DEAD: JobState.DEAD,
}


Lines = dict[tuple[str, StreamId], NewJob | None]
"""By subscriber and stream, the job that is to stand there; ``None``: none is."""


class _Row:
    """A job wherever it is; the tables of the Postgres store in one."""

    def __init__(self, job: NewJob, now_us: int) -> None:
        self.job = job
        self.created_us = now_us
        self.state = JobState.WAITING
        self.due_us = _instant(job.due, now_us)
        self.ready_us = max(self.due_us, now_us)
        self.attempt = 0
        self.crashes = 0
        self.claim_no = 0
        self.worker_id: WorkerId | None = None
        self.started_us: int | None = None
        self.ended_us: int | None = None
        self.expires_us: int | None = None
        self.reason: str | None = None
        self.error: Any = None  # parsed JSON
        self.past_attempts: list[dict[str, Any]] = []
        self.parked: str | None = None

    def order(self) -> tuple[int, int, str]:
        return (self.job.priority, self.ready_us, self.job.id)


class _Worker:
    def __init__(self, record: WorkerRecord) -> None:
        self.record = record
        self.beat = 0
        self.open = True
        self.signals: dict[tuple[JobId, str], Signal] = {}


class InMemoryJobStore:
    """
    A :class:`~eventflow.jobs.store.JobStore` that forgets everything with its process.

    Args:
        clock: Its wall time is the store's time.

    Attributes:
        lines: Where subscribers that take events in order stand, by subscriber and stream: the job there.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wakes: list[Callable[[], None]] = []
        self._rows: dict[JobId, _Row] = {}
        self._workers: dict[WorkerId, _Worker] = {}
        self.lines: dict[tuple[str, StreamId], NewJob] = {}

    def on_wake(self, wake: Callable[[], None]) -> None:
        """Call this when there may be something to claim."""
        self._wakes.append(wake)

    def move_lines(self, moved: Lines) -> None:
        """Subscribers that take events in order stand elsewhere from now on."""
        for line, job in moved.items():
            if job is None:
                self.lines.pop(line, None)
            else:
                self.lines[line] = job

    def check_new(self, jobs: Sequence[NewJob]) -> None:
        """
        Refuse an id that is taken, as a table would.

        Raises:
            DatabaseError: there is such a job, or there are two of them.
        """
        ids = set[JobId]()
        for job in jobs:
            if job.id in self._rows or job.id in ids:
                raise DatabaseError(f"{job.id} exists")
            ids.add(job.id)

    def drop_waiting(self, job_id: JobId) -> None:
        """Forget a job if it still waits: a deadline that was replaced."""
        row = self._rows.get(job_id)
        if row is not None and row.state is JobState.WAITING:
            del self._rows[job_id]

    async def insert(self, jobs: Sequence[NewJob]) -> None:
        self._add(jobs)
        self._wake()

    async def cancel(self, job_id: JobId) -> CancelOutcome:
        row = self._rows.get(job_id)
        if row is not None and row.state is JobState.WAITING:
            self._end(row, JobState.CANCELLED, retention_days=1)
            return CancelOutcome.CANCELLED
        if row is not None and self._signal(row, "cancel", None):
            return CancelOutcome.REQUESTED
        return CancelOutcome.NOT_FOUND

    async def reschedule(self, job_id: JobId, due: Due) -> RescheduleOutcome:
        row, now = self._rows.get(job_id), self._now()
        if row is not None and row.state is JobState.WAITING:
            row.due_us = _instant(due, now)
            row.ready_us = max(row.due_us, now)
            row.parked = row.parked if row.parked == "suspect" else None
            self._wake()
            return RescheduleOutcome.RESCHEDULED
        if row is not None and self._signal(row, "reschedule", _instant(due, now)):
            return RescheduleOutcome.REQUESTED
        return RescheduleOutcome.NOT_FOUND

    async def get(self, job_id: JobId) -> JobRecord | None:
        row = self._rows.get(job_id)
        return None if row is None else _record(row)

    async def find(
        self, *, state: JobState | None = None, queue: str | None = None, name: str | None = None, limit: int = 100
    ) -> Sequence[JobRecord]:
        found = (
            row
            for row in self._rows.values()
            if state in (None, row.state) and queue in (None, row.job.queue) and name in (None, row.job.name)
        )
        return [_record(row) for row in sorted(found, key=lambda row: row.job.id, reverse=True)[:limit]]

    async def open_worker(self, worker: WorkerRecord) -> None:
        self._workers.setdefault(worker.id, _Worker(worker))

    async def beat(self, worker_id: WorkerId) -> bool:
        worker = self._workers.get(worker_id)
        if worker is None or not worker.open:
            return False
        worker.beat += 1
        return True

    async def now_us(self) -> int:
        return self._now()

    async def tick(self, worker_id: WorkerId, interest: Interest) -> Tick:
        worker = self._workers.get(worker_id)
        now = self._now()
        claimable = self._claimable(interest)
        aside = [row for row in claimable if row.parked and row.ready_us <= now]
        suspect_us = min((row.ready_us for row in aside if row.parked == "suspect"), default=None)
        crew = sorted(w.record.id for w in self._workers.values() if w.open and w.record.queues == interest.queues)
        turn = now // _turn_us(now if suspect_us is None else suspect_us, now)
        return Tick(
            now_us=now,
            next_us=min(
                (r.ready_us for r in claimable if not r.parked and r.ready_us <= now + LOOKAHEAD_US), default=None
            ),
            open=worker is not None and worker.open,
            blocked=bool(self._unknown(interest)),
            parked=any(row.parked == "unknown" for row in aside),
            suspect_us=suspect_us,
            my_turn=worker_id in crew and crew.index(worker_id) == turn % len(crew),
            server="memory",
            peers=[
                Peer(other.record.id, other.beat, session_gone=False)
                for other in self._workers.values()
                if other.open and other is not worker
            ],
            signals=list(worker.signals.values()) if worker else [],
        )

    async def claim(
        self, worker_id: WorkerId, interest: Interest, *, ready: int, ahead: int, horizon_us: int, parked: bool = False
    ) -> ClaimBatch:
        self._mend_lines()
        now, kinds = self._now(), (None, "unknown") if parked else (None,)
        claimable = sorted(self._claimable(interest), key=_Row.order)
        due = [row for row in claimable if row.parked in kinds and row.ready_us <= now][:ready]
        waiting = [row for row in claimable if row.parked is None]
        soon = [row for row in waiting if now < row.ready_us <= now + horizon_us][:ahead]
        horizon = now + horizon_us
        later = [row.ready_us for row in waiting if horizon < row.ready_us <= horizon + LOOKAHEAD_US]
        return self._claim(worker_id, [*due, *soon], next_us=min(later, default=None))

    async def claim_suspect(self, worker_id: WorkerId, interest: Interest) -> ClaimBatch:
        now = self._now()
        suspects = (r for r in self._claimable(interest) if r.parked == "suspect" and r.ready_us <= now)
        return self._claim(worker_id, sorted(suspects, key=_Row.order)[:1], next_us=None)

    def _claim(self, worker_id: WorkerId, rows: Sequence[_Row], *, next_us: int | None) -> ClaimBatch:
        worker, now = self._workers.get(worker_id), self._now()
        if worker is None or not worker.open:
            raise LeaseLostError(f"{worker_id} has been closed")
        for row in rows:
            row.state, row.worker_id, row.parked = JobState.RUNNING, worker_id, None
            row.claim_no += 1
            row.attempt += 1
        claimed = sorted(map(_claimed, rows), key=lambda job: (job.ready_us, job.id))
        return ClaimBatch(now_us=now, split_us=now, jobs=claimed, next_us=next_us)

    async def park_unknown(self, interest: Interest) -> int:
        unknown = self._unknown(interest)
        for row in unknown:
            row.parked = "unknown"
        if unknown:
            self._wake()
        return len(unknown)

    async def sweep(self) -> int:
        return 0  # claims look at all jobs and lines

    def _mend_lines(self) -> None:
        """Put lines on their way whose job has ended without going on: with a job that only passes over its event."""
        for line, job in self.lines.items():
            row = self._rows.get(job.id)
            if row is None or row.state not in _LIVE:
                payload = {**msgspec.json.decode(job.payload), "passes_over": True}
                passing = msgspec.structs.replace(
                    job, id=JobId.new(), payload=msgspec.json.encode(payload), due=Due(), line=None
                )
                self._add([passing])
                self.lines[line] = passing

    async def claims(self, worker_id: WorkerId, known: Sequence[JobId]) -> Sequence[ClaimedJob]:
        return [_claimed(row) for row in self._held_by(worker_id) if row.job.id not in known]

    async def settle(self, worker_id: WorkerId, settlements: Sequence[Settlement]) -> set[JobId]:
        settled = {s.claim.id: s for s in settlements if self.holds(worker_id, s.claim)}
        self._add([job for settlement in settled.values() for job in settlement.follow_ups])
        for job_id, settlement in settled.items():
            self._settle(self._rows[job_id], settlement)
        self._wake()
        return set(settled)

    async def rescue(self, peer: Peer) -> int | None:
        worker = self._workers.get(peer.worker_id)
        if worker is None or not worker.open or worker.beat != peer.beat:
            return None
        return self._close(worker, crashed=True)

    async def close_worker(self, worker_id: WorkerId) -> int:
        worker = self._workers.get(worker_id)
        return 0 if worker is None else self._close(worker, crashed=False)

    async def maintain(self, retention_days: Sequence[int]) -> None:
        now = self._now()
        for job_id in [i for i, row in self._rows.items() if row.expires_us is not None and row.expires_us <= now]:
            del self._rows[job_id]

    def _wake(self) -> None:
        for wake in self._wakes:
            wake()

    def _now(self) -> int:
        return to_microseconds(self._clock.now())

    def _add(self, jobs: Sequence[NewJob]) -> None:
        self.check_new(jobs)
        now = self._now()
        self._rows.update({job.id: _Row(job, now) for job in jobs})

    def _claimable(self, interest: Interest) -> list[_Row]:
        known = set(zip(interest.names, interest.versions, strict=True))
        return [row for row in self._waiting(interest) if (row.job.name, row.job.version) in known]

    def _unknown(self, interest: Interest) -> list[_Row]:
        known, now = set(zip(interest.names, interest.versions, strict=True)), self._now()
        return [
            row
            for row in self._waiting(interest)
            if (row.job.name, row.job.version) not in known and row.parked is None and row.ready_us <= now
        ]

    def _waiting(self, interest: Interest) -> Iterator[_Row]:
        for row in self._rows.values():
            if row.state is JobState.WAITING and (interest.queues is None or row.job.queue in interest.queues):
                yield row

    def _held_by(self, worker_id: WorkerId) -> list[_Row]:
        return [r for r in self._rows.values() if r.state is JobState.RUNNING and r.worker_id == worker_id]

    def holds(self, worker_id: WorkerId, claim: ClaimedJob) -> bool:
        row = self._rows.get(claim.id)
        if row is None or row.state is not JobState.RUNNING:
            return False
        return (row.worker_id, row.claim_no) == (worker_id, claim.claim_no)

    def _signal(self, row: _Row, kind: str, due_us: int | None) -> bool:
        if row.state is not JobState.RUNNING or row.worker_id is None:
            return False
        self._workers[row.worker_id].signals[row.job.id, kind] = Signal(row.job.id, row.claim_no, kind, due_us)
        self._wake()
        return True

    def _settle(self, row: _Row, settlement: Settlement) -> None:
        row.started_us = settlement.started_us
        asked = self._answer_signals(row)
        if "cancel" in asked and settlement.outcome in (Outcome.RELEASED, Outcome.RETRY):
            self._end(row, JobState.CANCELLED, retention_days=1)
            return
        if settlement.outcome is Outcome.RELEASED:
            self._give_back(row, settlement.due, asked)
            return
        if settlement.error is not None:
            row.error = msgspec.json.decode(settlement.error)
            self._note_attempt(row, settlement.outcome.value, row.error)
        if settlement.outcome is Outcome.RETRY:
            self._wait_again(row, settlement.due, attempts_back=0)
            return
        row.reason = settlement.reason
        self._end(row, _ENDED[settlement.outcome], settlement.retention_days)

    def _answer_signals(self, row: _Row) -> dict[str, Signal]:
        """Forget what was asked of this claim, and tell."""
        if row.worker_id is None:
            return {}
        signals = self._workers[row.worker_id].signals
        asked = (signals.pop((row.job.id, kind), None) for kind in ("cancel", "reschedule"))
        return {signal.kind: signal for signal in asked if signal is not None and signal.claim_no == row.claim_no}

    def _give_back(self, row: _Row, due: Due | None, asked: Mapping[str, Signal]) -> None:
        if "reschedule" in asked:
            due = Due(at_us=asked["reschedule"].due_us)
        self._wait_again(row, due, attempts_back=1)

    def _wait_again(self, row: _Row, due: Due | None, *, attempts_back: int) -> None:
        now = self._now()
        if due is not None and due.at_us is not None:
            row.due_us = due.at_us  # rescheduled
        earliest = row.due_us if due is None else _instant(due, now)
        row.ready_us = max(earliest, now)
        row.attempt -= attempts_back
        row.state, row.worker_id = JobState.WAITING, None
        row.parked = "suspect" if row.crashes >= SUSPECT_CRASHES else None

    def _end(self, row: _Row, state: JobState, retention_days: int) -> None:
        row.state, row.ended_us = state, self._now()
        if state is JobState.DEAD:
            return
        if retention_days == 0:
            del self._rows[row.job.id]
        else:
            row.expires_us = row.ended_us + (retention_days + 1) * _DAY_US

    def _close(self, worker: _Worker, *, crashed: bool) -> int:
        worker.open = False
        held = self._held_by(worker.record.id)
        for row in held:
            asked = self._answer_signals(row)
            if "cancel" in asked:
                self._end(row, JobState.CANCELLED, retention_days=1)
                continue
            if crashed:
                row.crashes += 1
                self._note_attempt(row, "worker_died", None)
            if crashed and row.crashes >= DEADLY_CRASHES:
                row.reason = "worker_died"
                row.error = {"type": "WorkerDied", "message": f"{row.crashes} workers died while they held this job"}
                self._end(row, JobState.DEAD, retention_days=0)
                continue
            self._give_back(row, None, asked)
        self._wake()
        return len(held)

    def _note_attempt(self, row: _Row, outcome: str, error: Any) -> None:  # Any: parsed JSON
        row.past_attempts.append(
            {
                "attempt": row.attempt,
                "worker": row.worker_id,
                "started_at": None if row.started_us is None else to_datetime(row.started_us).isoformat(),
                "ended_at": self._clock.now().isoformat(),
                "outcome": outcome,
                "error": error,
            }
        )


def _instant(due: Due, now_us: int) -> int:
    return due.at_us if due.at_us is not None else now_us + (due.delay_us or 0)


def _turn_us(suspect_us: int, now_us: int) -> int:
    """How long turns are: a second, and more the longer a suspect waits."""
    return 1_000_000 * 2 ** int(log2(max(1.0, (now_us - suspect_us) / 4_000_000)))


def _claimed(row: _Row) -> ClaimedJob:
    return ClaimedJob(
        id=row.job.id,
        claim_no=row.claim_no,
        attempt=row.attempt,
        crashes=row.crashes,
        due_us=row.due_us,
        ready_us=row.ready_us,
        name=row.job.name,
        version=row.job.version,
        payload=row.job.payload.decode(),
        headers=row.job.headers.decode(),
        retry=row.job.retry.decode() if row.job.retry else None,
        timeout_us=row.job.timeout_us,
    )


def _record(row: _Row) -> JobRecord:
    waiting = row.state is JobState.WAITING
    return JobRecord(
        id=row.job.id,
        state=row.state,
        name=row.job.name,
        version=row.job.version,
        queue=row.job.queue,
        priority=row.job.priority,
        due_at=to_datetime(row.due_us),
        created_at=to_datetime(row.created_us),
        payload=msgspec.json.decode(row.job.payload),
        headers=msgspec.json.decode(row.job.headers),
        tags=row.job.tags,
        aggregate_id=row.job.aggregate_id,
        key=row.job.key,
        attempt=row.attempt,
        crashes=row.crashes,
        claim_no=row.claim_no,
        past_attempts=list(row.past_attempts),
        parked=row.parked if waiting else None,
        ready_at=to_datetime(row.ready_us) if waiting else None,
        worker_id=row.worker_id,
        started_at=None if row.started_us is None else to_datetime(row.started_us),
        ended_at=None if row.ended_us is None else to_datetime(row.ended_us),
        reason=row.reason,
        error=row.error if row.state is JobState.DEAD else None,
    )
