"""``eventflow jobs``: look at jobs and cancel them, without the application they belong to."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from random import Random
from typing import Any, TypeVar

import msgspec
from rich import box
from rich.table import Table
from rich.text import Text

from eventflow.cli.exits import ExitCode, UsageError
from eventflow.cli.terminal import Terminal, printable
from eventflow.clock import SystemClock
from eventflow.errors import InvalidIdentityError
from eventflow.ids import JobId
from eventflow.jobs import CancelOutcome, JobRecord, JobState
from eventflow.postgres import PostgresDatabase, PostgresJobStore

T = TypeVar("T")

_STYLES = {
    JobState.WAITING: "cyan",
    JobState.RUNNING: "yellow",
    JobState.SUCCEEDED: "green",
    JobState.IGNORED: "dim",
    JobState.CANCELLED: "dim",
    JobState.DEAD: "red",
}


class JobCommands:
    """
    The commands under ``eventflow jobs``.

    Args:
        dsn: The database.
        schema: Where its tables are.
        terminal: Gets the answers.
        json: Answer in JSON instead of tables.
    """

    def __init__(self, dsn: str, schema: str, *, terminal: Terminal, json: bool) -> None:
        self._dsn = dsn
        self._schema = schema
        self._terminal = terminal
        self._json = json

    def list(self, *, state: JobState | None, queue: str | None, name: str | None, limit: int) -> ExitCode:
        """Jobs that match, newest first."""
        jobs = self._ask(lambda store: store.find(state=state, queue=queue, name=name, limit=limit))
        if self._json:
            self._print_json(jobs)
        elif jobs:
            self._terminal.console.print(_table(jobs))
        else:
            self._terminal.note("no such jobs")
        return ExitCode.DONE

    def show(self, text: str) -> ExitCode:
        """Everything about one job."""
        job_id = parse_job_id(text)
        job = self._ask(lambda store: store.get(job_id))
        if job is None:
            self._terminal.note(f"there is no job {job_id}, or its history has expired")
            return ExitCode.NOT_FOUND
        if self._json:
            self._print_json(job)
        else:
            self._terminal.console.print(_details(job))
        return ExitCode.DONE

    def cancel(self, text: str) -> ExitCode:
        """Keep one job from running, or have its worker stop it."""
        job_id = parse_job_id(text)

        async def cancel(store: PostgresJobStore) -> tuple[CancelOutcome, JobRecord | None]:
            outcome = await store.cancel(job_id)
            return outcome, await store.get(job_id) if outcome is CancelOutcome.NOT_FOUND else None

        outcome, ended = self._ask(cancel)
        if self._json:
            self._print_json({"id": job_id, "outcome": outcome})
        elif outcome is CancelOutcome.CANCELLED:
            self._terminal.result(f"{job_id} is cancelled")
        elif outcome is CancelOutcome.REQUESTED:
            self._terminal.result(f"{job_id} is running; its worker has been asked to stop it")
        elif ended is not None:
            self._terminal.note(f"{job_id} has ended: {ended.state.value}")
        else:
            self._terminal.note(f"there is no job {job_id}, or its history has expired")
        return ExitCode.NOT_FOUND if outcome is CancelOutcome.NOT_FOUND else ExitCode.DONE

    def _ask(self, question: Callable[[PostgresJobStore], Awaitable[T]]) -> T:
        async def ask() -> T:
            async with PostgresDatabase.open(
                self._dsn, schema=self._schema, clock=SystemClock(), rng=Random()
            ) as database:
                return await question(database.store)

        return asyncio.run(ask())

    def _print_json(self, value: object) -> None:
        text = msgspec.json.encode(value, enc_hook=str)  # identities are strings with a type of their own
        self._terminal.result(msgspec.json.format(text, indent=2).decode())


def parse_job_id(text: str) -> JobId:
    """
    A job's id, also as the bare UUID that stands in the tables.

    >>> parse_job_id("01890a5d-ac96-774b-bcce-b302099a8057")
    JobId('job-01890a5d-ac96-774b-bcce-b302099a8057')
    """
    try:
        return JobId(text if text.startswith("job-") else f"job-{text}")
    except InvalidIdentityError:
        raise UsageError(f"{text!r} is not the id of a job, which is job- and a UUID in lower case") from None


def _table(jobs: Sequence[JobRecord]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("id", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("name", overflow="fold")
    table.add_column("queue", overflow="fold")
    table.add_column("due (UTC)", overflow="fold")
    table.add_column("attempts", justify="right")
    for job in jobs:
        table.add_row(
            job.id, _state(job), _name(job), Text(printable(job.queue)), _instant(job.due_at), str(job.attempt)
        )
    return table


def _details(job: JobRecord) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in _facts(job):
        if value not in (None, "", {}, (), []):
            grid.add_row(label, value if isinstance(value, Text) else Text(printable(str(value))))
    return grid


def _facts(job: JobRecord) -> Iterator[tuple[str, Any]]:  # Any: what str() and rich show
    yield "id", job.id
    yield "state", _state(job)
    yield "name", _name(job)
    yield "queue", job.queue
    yield "priority", job.priority
    yield "created", _instant(job.created_at)
    yield "due", _instant(job.due_at)
    yield "ready", job.ready_at and _instant(job.ready_at)
    yield "started", job.started_at and _instant(job.started_at)
    yield "ended", job.ended_at and _instant(job.ended_at)
    yield "worker", job.worker_id
    yield "attempts", job.attempt
    yield "crashes", job.crashes or None
    yield "aggregate", job.aggregate_id
    yield "key", job.key
    yield "tags", ", ".join(job.tags)
    yield "headers", job.headers and _pretty(job.headers)
    yield "payload", _pretty(job.payload)
    yield "reason", job.reason
    yield "error", _error(job.error)
    for attempt in job.past_attempts:
        yield f"attempt {attempt.get('attempt', '?')}", _attempt(attempt)


def _attempt(attempt: Any) -> str:  # Any: parsed JSON, which an older release may have written
    facts = ("outcome", "worker", "started_at", "ended_at")
    lines = [f"{fact.removesuffix('_at')} {attempt[fact]}" for fact in facts if attempt.get(fact)]
    return "\n".join([*lines, *filter(None, [_error(attempt.get("error"), traceback=False)])])


def _error(error: Any, *, traceback: bool = True) -> str | None:  # Any: parsed JSON
    if not isinstance(error, dict):
        return None if error is None else str(error)
    known: dict[str, Any] = error  # pyright: ignore[reportUnknownVariableType]  JSON has string keys
    line = f"{known.get('type', 'error')}: {known.get('message', '')}"
    return f"{line}\n{known['traceback']}" if traceback and known.get("traceback") else line


def _state(job: JobRecord) -> Text:
    return Text(job.state.value, style=_STYLES[job.state])


def _name(job: JobRecord) -> Text:
    return Text(printable(job.name if job.version == 1 else f"{job.name} v{job.version}"))


def _instant(instant: datetime) -> str:
    return instant.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _pretty(value: Any) -> str:  # Any: parsed JSON
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
