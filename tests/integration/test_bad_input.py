"""Bad input: a typed error where it is given, and nothing written; what is stored all the same harms only itself."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventflow import (
    App,
    EventFlowError,
    InvalidMessageError,
    InvalidScheduleError,
    Job,
    JobContext,
    JobState,
    OnError,
    PayloadTooLargeError,
    RetryPolicy,
    UnknownJobDefinitionError,
)
from tests.support.journal import Journal, Note, count_jobs, ended, flow_of, query
from tests.support.waiting import eventually

NAIVE = datetime(2030, 1, 1)


def nested(depth: int) -> list[Any]:  # Any: lists all the way down
    """A list in a list in a list."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


class Carry(Job):
    """Carries a value, and does nothing."""

    number: float = 0.0
    text: str = ""
    anything: Any = None

    async def execute(self, context: JobContext) -> None:
        pass


class Unregistered(Job):
    """Nobody knows it."""

    async def execute(self, context: JobContext) -> None:
        pass


BAD_OPTIONS: list[Mapping[str, Any]] = [
    {"at": NAIVE},
    {"at": "tomorrow"},
    {"at": datetime(1999, 12, 31, tzinfo=UTC)},
    {"at": datetime(2200, 1, 1, tzinfo=UTC)},
    {"delay": timedelta(seconds=-1)},
    {"delay": timedelta(days=40_000)},
    {"delay": 5},
    {"delay": timedelta(0), "at": datetime(2030, 1, 1, tzinfo=UTC)},
    {"priority": 4},
    {"priority": -1},
    {"queue": ""},
    {"queue": "q" * 101},
    {"queue": "nul\0"},
    {"queue": "\ud800"},
    {"key": "k" * 201},
    {"tags": "not a list"},
    {"tags": ["t"] * 51},
    {"tags": ["nul\0"]},
    {"timeout": timedelta(0)},
    {"timeout": timedelta(days=400)},
    {"retry": RetryPolicy(on={ValueError: OnError.IGNORE})},
]
BAD_JOBS: list[tuple[Job, type[EventFlowError]]] = [
    (Carry(number=float("nan")), InvalidMessageError),
    (Carry(number="1"), InvalidMessageError),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    (Carry(text=b"bytes"), InvalidMessageError),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    (Carry(text="\ud800"), InvalidMessageError),
    (Carry(anything=(1, 2)), InvalidMessageError),  # would come back as a list
    (Carry(anything=object()), InvalidMessageError),
    (Carry(text="x" * 1024 * 1024), PayloadTooLargeError),
    (Carry(anything=nested(101)), PayloadTooLargeError),
    (Carry(anything=nested(100_000)), PayloadTooLargeError),
    (Unregistered(), UnknownJobDefinitionError),
]


async def schedule_everywhere(app: App, job: Job, error: type[EventFlowError], options: Mapping[str, Any]) -> None:
    """Each way to schedule refuses the job with this error."""
    with pytest.raises(error):
        await app.jobs.schedule(job, **options)
    with pytest.raises(error):
        await app.jobs.schedule_many([Note(), job], **options)
    async with app.transaction() as connection:
        with pytest.raises(error):
            await app.jobs.schedule(job, connection=connection, **options)


async def test_options_that_make_no_sense_are_refused(
    dsn: str, admin_dsn: str, journal: Journal, subtests: pytest.Subtests
) -> None:
    """Before anything is written, whether alone, with others or in a transaction."""
    async with flow_of(journal).open(dsn) as app:
        for options in BAD_OPTIONS:
            with subtests.test(options=repr(options)[:100]):
                await schedule_everywhere(app, Note(), InvalidScheduleError, options)

    assert await count_jobs(admin_dsn) == 0


async def test_jobs_that_json_would_change_are_refused(
    dsn: str, admin_dsn: str, journal: Journal, subtests: pytest.Subtests
) -> None:
    """A value of the wrong type, too large, too deep, or of a type that nobody registered."""
    async with flow_of(journal, Carry).open(dsn) as app:
        for number, (job, error) in enumerate(BAD_JOBS):
            with subtests.test(number=number):
                await schedule_everywhere(app, job, error, {})

    assert await count_jobs(admin_dsn) == 0


async def test_text_that_postgres_cannot_hold_as_such(dsn: str, journal: Journal) -> None:
    """NUL in a payload is JSON like any other; it arrives as it was sent."""
    async with flow_of(journal).open(dsn) as app, app.worker():
        await ended(app, await app.jobs.schedule(Note(label="nul \0 and \N{GRINNING FACE}")))

    assert journal.labels() == ["nul \0 and \N{GRINNING FACE}"]


UNREADABLE = {
    "wrong type": ("Note", """'{"label": 5}'""", "now()"),
    "not an object": ("Note", "'[]'", "now()"),
    "too deep": ("Carry", "('{\"anything\":' || repeat('[', 5000) || repeat(']', 5000) || '}')", "now()"),
    "surrogate": ("Note", r"""'{"label": "\ud800"}'""", "now()"),
}


@pytest.mark.parametrize("case", UNREADABLE)
async def test_row_that_cannot_be_read_is_a_dead_letter(
    dsn: str, producer_dsn: str, journal: Journal, case: str
) -> None:
    """Any SQL client can write one: it is dead-lettered with the reason, and the others run."""
    name, payload, due_at = UNREADABLE[case]
    async with flow_of(journal, Carry).open(dsn) as app:
        before = await app.jobs.schedule(Note(label="before"))
        await query(producer_dsn, f"SELECT eventflow.schedule_job('{name}', 1, {payload}::json, {due_at})")
        after = await app.jobs.schedule(Note(label="after"))
        async with app.worker():
            await ended(app, before)
            await ended(app, after)
            [dead] = await eventually(lambda: app.jobs.find(state=JobState.DEAD))

    assert sorted(journal.labels()) == ["after", "before"]
    assert (dead.reason, dead.attempt) == ("undecodable", 1)
    assert dead.error is not None
    assert dead.error["message"]


async def test_odd_columns_concern_their_own_job_only(dsn: str, admin_dsn: str, journal: Journal) -> None:
    """Headers and retry numbers that are not ours, written by hand: the job still runs, or is a dead letter."""
    async with flow_of(journal).open(dsn) as app:
        ids = [await app.jobs.schedule(Note(label=str(number))) for number in range(6)]
        odd = ["headers = '5'", "headers = NULL", "headers = '{\"correlation_id\": 5}'", "retry = '[]'", "tags = '{}'"]
        for job_id, change in zip(ids, odd, strict=False):
            await query(admin_dsn, f"UPDATE eventflow.job SET {change} WHERE id = $1", job_id.uuid)
        async with app.worker():
            states = [(await ended(app, job_id)).state for job_id in ids]

    assert set(states[:-1]) <= {JobState.SUCCEEDED, JobState.DEAD}
    assert (states[1], states[-1]) == (JobState.SUCCEEDED, JobState.SUCCEEDED)  # no headers, and the untouched one


async def test_unknown_job_waits_for_who_knows_it(dsn: str, producer_dsn: str, journal: Journal) -> None:
    """A worker leaves names and versions alone that it does not know; a later one runs them."""
    flow = flow_of(journal)
    async with flow.open(dsn) as app, app.worker():
        await query(producer_dsn, "SELECT eventflow.schedule_job('Carry', 1, '{}')")
        await query(producer_dsn, "SELECT eventflow.schedule_job('Note', 2, '{}')")
        await ended(app, await app.jobs.schedule(Note()))
        unknown = await app.jobs.find(state=JobState.WAITING)
        assert sorted((record.name, record.version, record.claim_no) for record in unknown) == [
            ("Carry", 1, 0),
            ("Note", 2, 0),
        ]
    async with flow_of(journal, Carry).open(dsn) as app, app.worker():
        [carry] = [record for record in unknown if record.name == "Carry"]
        assert (await ended(app, carry.id)).state is JobState.SUCCEEDED


class UnprintableError(Exception):
    """Cannot even say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class FailsOddly(Job):
    """Fails with a text that tables refuse."""

    kind: str

    async def execute(self, context: JobContext) -> None:
        if self.kind == "unprintable":
            raise UnprintableError
        if self.kind == "exit":
            raise SystemExit(3)
        texts = {"nul": "a\0b", "surrogate": "\ud800", "huge": "x" * 50_000_000}
        raise ValueError(texts[self.kind])


@pytest.mark.parametrize("kind", ["nul", "surrogate", "huge", "unprintable", "exit"])
async def test_odd_errors_are_stored(dsn: str, journal: Journal, kind: str) -> None:
    """Sanitised and bounded: the job becomes a dead letter, and its neighbours are not touched."""
    flow = flow_of(journal)
    flow.job(retry=RetryPolicy(max_attempts=2, base=timedelta(0)))(FailsOddly)
    async with flow.open(dsn) as app, app.worker():
        failing = await app.jobs.schedule(FailsOddly(kind=kind))
        neighbours = await app.jobs.schedule_many([Note() for _ in range(20)])
        dead = await ended(app, failing)
        for job_id in neighbours:
            assert (await ended(app, job_id)).state is JobState.SUCCEEDED

    assert (dead.state, dead.reason, dead.attempt) == (JobState.DEAD, "error", 2)
    assert dead.error is not None
    assert len(dead.error["message"]) < 10_000
    assert len(dead.past_attempts) == 2
