"""Between records and the driver's values."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import asyncpg
import msgspec

from eventflow.clock import to_datetime
from eventflow.ids import JobId, WorkerId
from eventflow.jobs import ClaimedJob, JobRecord, JobState, NewJob


def insert_arguments(jobs: Sequence[NewJob], queue_ids: Mapping[str, int]) -> tuple[list[Any], ...]:
    """The parallel arrays of ``insert_jobs.sql``."""
    return (
        [job.id.uuid for job in jobs],
        [queue_ids[job.queue] for job in jobs],
        [job.priority for job in jobs],
        [job.due.at_us for job in jobs],
        [job.due.delay_us for job in jobs],
        [job.name for job in jobs],
        [job.version for job in jobs],
        [job.payload.decode() for job in jobs],
        [job.headers.decode() for job in jobs],
        [array_literal(job.tags) for job in jobs],
        [job.aggregate_id for job in jobs],
        [job.key for job in jobs],
        [None if job.retry is None else job.retry.decode() for job in jobs],
        [job.timeout_us for job in jobs],
    )


COPY_COLUMNS = (
    "id",
    "queue_id",
    "priority",
    "due_at",
    "ready_at",
    "created_at",
    "name",
    "version",
    "payload",
    "headers",
    "tags",
    "aggregate_id",
    "key",
    "retry",
    "timeout_us",
)


def copy_rows(jobs: Iterable[NewJob], queue_ids: Mapping[str, int], now_us: int) -> Iterator[tuple[Any, ...]]:
    """The rows of a COPY into ``job``, whose delays count from *now_us*, the database's time just before."""
    now = to_datetime(now_us)
    for job in jobs:
        due_us = job.due.at_us if job.due.at_us is not None else now_us + (job.due.delay_us or 0)
        due_at = now if due_us == now_us else to_datetime(due_us)
        yield (
            job.id.uuid,
            queue_ids[job.queue],
            job.priority,
            due_at,
            max(due_at, now),
            now,
            job.name,
            job.version,
            job.payload.decode(),
            job.headers.decode(),
            list(job.tags) or None,
            job.aggregate_id,
            job.key,
            None if job.retry is None else job.retry.decode(),
            job.timeout_us,
        )


def array_literal(tags: Sequence[str]) -> str | None:
    r"""
    Texts as a Postgres array literal; nothing for no tags.

    >>> array_literal(["plain", 'with "quotes" and \\'])
    '{"plain","with \\"quotes\\" and \\\\"}'
    """
    if not tags:
        return None
    quoted = (tag.replace("\\", "\\\\").replace('"', '\\"') for tag in tags)
    return "{" + ",".join(f'"{tag}"' for tag in quoted) + "}"


_CLAIMED = len(ClaimedJob.__struct_fields__)


def claimed_job(row: asyncpg.Record) -> ClaimedJob:
    """A row of ``claim_jobs.sql`` or ``select_claims.sql``, whose last columns are the fields."""
    job_id, *others = row[-_CLAIMED:]
    return ClaimedJob(JobId.of(job_id), *others)


def job_record(row: asyncpg.Record) -> JobRecord:
    """A row of ``find_jobs.sql`` or ``get_job.sql``; whatever was written into it, it can be looked at."""
    return JobRecord(
        id=JobId.of(str(row["id"])),
        state=JobState(row["state"]),
        name=row["name"],
        version=row["version"],
        queue=row["queue"] or "",
        priority=row["priority"],
        due_at=instant(row["due_s"]),
        created_at=instant(row["created_s"]),
        payload=_json(row["payload"]),
        headers=_object(_json(row["headers"])) or {},
        tags=tuple(_texts(row["tags"])),
        aggregate_id=row["aggregate_id"],
        key=row["key"],
        attempt=row["attempt"],
        crashes=row["crashes"],
        claim_no=row["claim_no"],
        past_attempts=_attempts(_json(row["past_attempts"])),
        ready_at=None if row["ready_s"] is None else instant(row["ready_s"]),
        worker_id=None if row["worker_id"] is None else WorkerId.of(str(row["worker_id"])),
        started_at=None if row["started_s"] is None else instant(row["started_s"]),
        ended_at=None if row["ended_s"] is None else instant(row["ended_s"]),
        parked=row["parked"],
        reason=row["reason"],
        error=_error(_json(row["error"])),
    )


def instant(seconds: Decimal) -> datetime:
    """
    The instant so many seconds after the epoch, or the nearest that ``datetime`` can name.

    >>> instant(Decimal("1.5")).isoformat(), instant(Decimal("Infinity")).year
    ('1970-01-01T00:00:01.500000+00:00', 9999)
    """
    try:
        numerator, denominator = seconds.as_integer_ratio()  # exact, whatever the precision in force
        return to_datetime(numerator * 1_000_000 // denominator)
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC) if seconds < 0 else datetime.max.replace(tzinfo=UTC)


def _texts(tags: Sequence[Any] | None) -> Iterator[str]:  # Any: SQL writes arrays of any depth, with nulls in them
    for tag in tags or ():
        if isinstance(tag, list):
            yield from _texts(tag)  # pyright: ignore[reportUnknownArgumentType]
        elif tag is not None:
            yield tag


def _object(stored: Any) -> dict[str, Any] | None:  # Any: parsed JSON
    return stored if isinstance(stored, dict) else None  # pyright: ignore[reportUnknownVariableType]  JSON has string keys


def _attempts(stored: Any) -> list[dict[str, Any]]:  # Any: parsed JSON
    attempts: list[Any] = stored if isinstance(stored, list) else [] if stored is None else [stored]  # pyright: ignore[reportUnknownVariableType]
    return [_attempt(_object(attempt) or {"error": attempt}) for attempt in attempts]


def _attempt(attempt: dict[str, Any]) -> dict[str, Any]:
    worker = attempt.get("worker")
    return {
        **attempt,
        "worker": WorkerId.of(worker) if isinstance(worker, str) else None,
        "error": _error(attempt.get("error")),
    }


def _error(stored: Any) -> dict[str, Any] | None:  # Any: parsed JSON
    return None if stored is None else _object(stored) or {"message": stored}


def _json(text: str | None) -> Any:
    """Parsed JSON; text that our parser refuses (Postgres allows a little more) is shown as it is."""
    if text is None:
        return None
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return text
