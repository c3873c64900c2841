"""
What crosses the port between jobs and their store.

Instants are integers: microseconds since the epoch by the store's clock. Payloads are JSON text. So a row that
no type can hold, such as a due time beyond Python's years, is still read, and concerns its own job only.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any

import msgspec

from eventflow.ids import JobId, WorkerId
from eventflow.scheduling import Due


class Line(msgspec.Struct, frozen=True):
    """
    Where a job stands in line: it is about an event, for a subscriber that takes those of a stream in order.

    Attributes:
        stream_version: The event's number.
    """

    subscriber: str
    stream_version: int


class NewJob(msgspec.Struct, frozen=True, kw_only=True):
    """
    A job as it is handed to the store: encoded and checked.

    *line*: it is added only if it is the first there.
    """

    id: JobId
    name: str
    version: int
    payload: bytes
    queue: str
    priority: int
    due: Due
    headers: bytes
    key: str | None = None
    tags: tuple[str, ...] = ()
    aggregate_id: str | None = None
    retry: bytes | None = None
    timeout_us: int | None = None
    line: Line | None = None


class ClaimedJob(msgspec.Struct, frozen=True):
    """A job in a worker's hands. *claim_no*, with the worker's id, is the fence of everything written for it."""

    id: JobId
    claim_no: int
    attempt: int
    crashes: int
    due_us: int
    ready_us: int
    name: str
    version: int
    payload: str
    headers: str | None
    retry: str | None
    timeout_us: int | None


class Interest(msgspec.Struct, frozen=True):
    """What a worker can run: its queues (``None``: all) and the stored names and versions it knows."""

    queues: tuple[str, ...] | None
    names: tuple[str, ...]
    versions: tuple[int, ...]


LOOKAHEAD_US = 2_000_000
"""How far a look at what comes next goes: there is another look before that, and jobs that nobody here can run may
wait beyond it in great numbers. The SQL has the same two seconds."""


SUSPECT_CRASHES = 2
"""A job that was held by so many workers when they died is claimed alone and runs alone. The SQL has the same."""
DEADLY_CRASHES = 5
"""A job that was held by so many workers when they died is not tried again. The SQL has the same."""


class ClaimBatch(msgspec.Struct, frozen=True, kw_only=True):
    """
    The answer to a claim.

    Attributes:
        now_us: The store's time.
        split_us: What was ready by then was claimed as ready, the rest as ahead of time.
        jobs: The claimed jobs, by the time they are ready.
        next_us: When the earliest job beyond the claim's horizon is ready, as far as :data:`LOOKAHEAD_US`
            goes; ``None``: there is none.
    """

    now_us: int
    split_us: int
    jobs: Sequence[ClaimedJob]
    next_us: int | None


class Outcome(Enum):
    """How a claim ends."""

    SUCCEEDED = "succeeded"
    IGNORED = "ignored"
    """Failed with an error that its policy ignores."""
    CANCELLED = "cancelled"
    RETRY = "retry"
    """Waits again, one attempt used."""
    RELEASED = "released"
    """Waits again as if it had not been claimed: the attempt is given back."""
    DEAD = "dead"


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """
    The end of one claim.

    Attributes:
        due: For ``RETRY`` and ``RELEASED``: when it may run again; ``None``: at its due time.
        started_us: When the attempt started; ``None``: it did not.
        error: JSON object of the error (type, message, traceback), free of NUL.
        reason: Why it is dead, in one word.
        follow_ups: Jobs to insert in the same transaction, if the claim still holds.
        is_written: It has been written, with what the job changed.
    """

    claim: ClaimedJob
    outcome: Outcome
    started_us: int | None = None
    error: str | None = None
    reason: str | None = None
    due: Due | None = None
    retention_days: int = 0
    follow_ups: tuple[NewJob, ...] = ()
    is_written: bool = False


class Ending(msgspec.Struct, frozen=True):
    """A claim that ends in success within a transaction, and the worker whose claim it is."""

    worker_id: WorkerId
    settlement: Settlement


class Peer(msgspec.Struct, frozen=True):
    """
    Another open worker, as one look at the store shows it.

    *session_gone*: the session that it proved to hold on this very server is not there any more.
    """

    worker_id: WorkerId
    beat: int
    session_gone: bool


class Signal(msgspec.Struct, frozen=True):
    """What somebody asks of a claimed job: ``cancel``, or ``reschedule`` to *due_us*."""

    job_id: JobId
    claim_no: int
    kind: str
    due_us: int | None


class Tick(msgspec.Struct, frozen=True):
    """
    One look at the store, once a second; it writes nothing.

    Attributes:
        now_us: The store's time.
        next_us: When the earliest claimable job is, or was, ready, as far as :data:`LOOKAHEAD_US` goes; ``None``:
            there is none.
        open: Whether the worker asking still has its lease.
        blocked: Jobs that this worker cannot run stand in the way of its claims.
        parked: Others put jobs aside that this worker can run.
        suspect_us: Since when a job has been ready that must run alone; ``None``: there is none.
        my_turn: Of the open workers of the same queues, this is the one to do what needs doing once a second.
        server: Identifies the running server: changes with a restart and a failover.
    """

    now_us: int
    next_us: int | None
    open: bool
    blocked: bool
    parked: bool
    suspect_us: int | None
    my_turn: bool
    server: str
    peers: Sequence[Peer]
    signals: Sequence[Signal]


class WorkerRecord(msgspec.Struct, frozen=True):
    """One incarnation of a worker, as it registers."""

    id: WorkerId
    host: str
    pid: int
    version: str
    queues: tuple[str, ...] | None
    concurrency: int


class JobState(Enum):
    """Where a job is."""

    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    IGNORED = "ignored"
    CANCELLED = "cancelled"
    DEAD = "dead"


class CancelOutcome(Enum):
    """The answer to ``cancel``."""

    CANCELLED = "cancelled"
    """It will not run."""
    REQUESTED = "requested"
    """A worker holds it and has been asked to stop it; see the job for what came of it."""
    NOT_FOUND = "not_found"
    """It has ended, or never was."""


class RescheduleOutcome(Enum):
    """The answer to ``reschedule``."""

    RESCHEDULED = "rescheduled"
    REQUESTED = "requested"
    """A worker holds it: moved if it has not started, or is given back unfinished."""
    NOT_FOUND = "not_found"


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """
    A job as it can be looked up, waiting, running or ended.

    Attributes:
        attempt: Attempts of its retry budget that are used.
        claim_no: How often a worker claimed it.
        payload: The message as it is stored.
        parked: Why it waits although it is ready: ``unknown`` (a worker that did not know it put it aside, for one that
            does), ``suspect`` (workers died that held it: it will run alone).
        past_attempts: Attempts that ended without success, oldest first: ``attempt``, ``worker``,
            ``started_at``, ``ended_at``, ``outcome``, ``error``.
        reason: Why it is dead.
    """

    id: JobId
    state: JobState
    name: str
    version: int
    queue: str
    priority: int
    due_at: datetime
    created_at: datetime
    payload: Any  # parsed JSON
    headers: Mapping[str, str]
    tags: tuple[str, ...] = ()
    aggregate_id: str | None = None
    key: str | None = None
    attempt: int = 0
    crashes: int = 0
    claim_no: int = 0
    past_attempts: Sequence[Mapping[str, Any]] = ()  # parsed JSON
    ready_at: datetime | None = None
    parked: str | None = None
    worker_id: WorkerId | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    reason: str | None = None
    error: Mapping[str, Any] | None = None  # parsed JSON
