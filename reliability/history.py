"""What happened in a run under faults: told by those it happened to, in one order."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import msgspec

from eventflow import JobId, WorkerId

PROBE = 900_000
"""Number of a job that is scheduled when all is well again."""


class Entry(msgspec.Struct, frozen=True, tag=True):
    """
    Something happened.

    Attributes:
        at: Seconds since the run began, by a clock that nobody sets.
    """

    at: float


class Asked(Entry, frozen=True):
    """
    A producer's call has ended.

    Attributes:
        number: Of the job or command.
        answer: ``done``; ``refused``: nothing was written; ``unknown``.
        job_id: ``None``: the command was published at once, or nobody knows.
    """

    by: str
    number: int
    answer: str
    job_id: JobId | None = None


class Began(Entry, frozen=True):
    """
    A handler has started.

    Attributes:
        attempt: Of its job; 0: a command, whose handler does not know.
        store_us: The store's time.
        due_us: When it was due, by that; 0: the handler does not know.
    """

    process: str
    number: int
    attempt: int
    store_us: int
    due_us: int


class Ended(Entry, frozen=True):
    """A handler has come to its end."""

    process: str
    number: int


class Saw(Entry, frozen=True):
    """A subscriber that takes events in order got one."""

    process: str
    account_id: str
    stream_version: int


class Joined(Entry, frozen=True):
    """A worker has registered."""

    process: str
    worker_id: WorkerId


class Changed(Entry, frozen=True):
    """
    A job's state has changed, in the store.

    Attributes:
        left: The state before; ``None``: the job is new.
        entered: The state after; ``None``: no trace of it is kept.
        worker_id: Who holds it afterwards, or held it before.
        by: The call or transaction.
        writer: The worker and the number of the claim that the call is for; ``None``: it is for none.
    """

    job_id: JobId
    name: str
    number: int
    left: str | None
    entered: str | None
    attempt: int
    claim_no: int
    crashes: int
    worker_id: WorkerId | None
    by: str
    writer: tuple[WorkerId, int] | None = None


class Rescued(Entry, frozen=True):
    """A worker was taken for dead."""

    worker_id: WorkerId


class Failed(Entry, frozen=True):
    """Something was made to fail."""

    fault: str
    target: str
    seconds: float = 0.0


class Stopped(Entry, frozen=True):
    """
    A worker that was asked to stop has ended.

    Attributes:
        took: Seconds.
        allowed: Its grace period.
    """

    process: str
    took: float
    allowed: float


AnyEntry = Asked | Began | Ended | Saw | Joined | Rescued | Changed | Failed | Stopped


class Deposits(msgspec.Struct, frozen=True):
    """
    The events of one account, as they are stored.

    Attributes:
        versions: In the order of the store.
        numbers: Of the commands they came from.
    """

    account_id: str
    versions: Sequence[int]
    numbers: Sequence[int]


class Evidence(msgspec.Struct, frozen=True):
    """
    All there is to judge a run by.

    Attributes:
        entries: In the order they happened.
        deposits: What is stored at the end.
        healed_at: When the last fault was over.
        ended_at: When nothing was left to do, or nobody waited any longer.
        clock_was_set: The store's clock was moved, so that due times say little.
        doomed: Numbers of jobs that may become dead letters.
        cancelled: Numbers of jobs that somebody has tried to cancel.
        children: By the number of a job those that it leads to if it succeeds.
        is_probed: A job was scheduled when all was well again.
        wake_seconds: What an idle system takes at most to start that.
        left_over: What should be gone after everybody has stopped.
        ledger: How often a job came to its end, as handlers have booked it in another database before they did.
    """

    entries: Sequence[AnyEntry]
    deposits: Sequence[Deposits]
    healed_at: float
    ended_at: float
    clock_was_set: bool
    doomed: AbstractSet[int]
    cancelled: AbstractSet[int]
    left_over: Sequence[str] = ()
    ledger: Mapping[int, int] | None = None
    children: Mapping[int, Sequence[int]] = {}
    is_probed: bool = False
    wake_seconds: float = 0.1

    @property
    def jobs(self) -> set[JobId]:
        """All that there ever were."""
        return {entry.job_id for entry in self.entries if isinstance(entry, Changed)}


def line_of(entry: AnyEntry) -> bytes:
    """An entry as a line of JSON."""
    return _ENCODER.encode(entry) + b"\n"


def write_lines(path: Path, entries: Sequence[AnyEntry]) -> None:
    """Keep a history."""
    path.write_bytes(b"".join(map(line_of, entries)))


def read_lines(path: Path) -> list[AnyEntry]:
    """A history that was kept."""
    return _DECODER.decode_lines(path.read_bytes())


_ENCODER = msgspec.json.Encoder(enc_hook=str)  # of ids
_DECODER = msgspec.json.Decoder(AnyEntry, dec_hook=lambda kind, text: kind(text))
