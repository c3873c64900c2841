"""Poison: whatever stands in a row and whatever a handler raises, that job alone is affected."""

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import anyio
import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from eventflow import (
    App,
    CancelOutcome,
    CommandContext,
    EventFlow,
    Job,
    JobContext,
    JobId,
    JobState,
    RescheduleOutcome,
    RetryPolicy,
    StandaloneCommand,
)
from eventflow.cli.exits import ExitCode
from eventflow.cli.jobs import JobCommands
from eventflow.cli.terminal import Terminal
from eventflow.ids import new_uuid
from eventflow.jobs import Peer
from tests.support.job_stores import PostgresDriver
from tests.support.journal import Hold, Journal, Note, ended, flow_of, in_state, query
from tests.support.postgres import Database
from tests.support.transitions import Transitions
from tests.support.waiting import eventually

ONCE = RetryPolicy(max_attempts=1)


class Carry(Job):
    """Carries a value, and does nothing."""

    anything: Any = None

    async def execute(self, context: JobContext) -> None:
        pass


class Fussy(Job):
    """Reads itself in a way that ends the process."""

    label: str = ""

    def __post_init__(self) -> None:
        if self.label == "exit":
            raise SystemExit(3)

    async def execute(self, context: JobContext) -> None:
        pass


def digits(count: int) -> str:
    """SQL of a payload with a number of so many digits."""
    return f"""('{{"anything": ' || repeat('9', {count}) || '}}')::json"""


def levels(count: int) -> str:
    """SQL of JSON that is so many levels deep."""
    return f"""('{{"anything": ' || repeat('[', {count}) || repeat(']', {count}) || '}}')::json"""


UNREADABLE = [
    ("Note", "payload = '[]'"),
    ("Note", "payload = 'null'"),
    ("Note", "payload = '{\"label\": 5}'"),
    ("Carry", f"payload = {digits(131_072)}"),
    ("Carry", f"payload = {levels(10_000)}"),
    ("Carry", "payload = '{\"anything\": 1e999}'"),
    ("Carry", "headers = '5'"),
    ("Carry", "headers = '{\"correlation_id\": 5}'"),
    ("Carry", f"headers = {levels(10_000)}"),
    ("Fussy", 'payload = \'{"label": "exit"}\''),
]
"""What no decoder reads, with the checks of the tables in force. (Lone surrogates: no trigger reads them either.)"""

READABLE = [
    "created_at = 'infinity'",
    "created_at = '-infinity'",
    "created_at = '294276-12-31 00:00:00+00'",
    "created_at = '4713-01-01 00:00:00+00 BC'",
    "expires_at = 'infinity'",
    "tags = '{{a,b},{c,NULL}}'",
    "tags = '[5:6]={a,b}'",
    "aggregate_id = repeat(E'\\x1b[31m', 1000)",
    "headers = NULL",
    r"""headers = '{"correlation_id": "\u0000", "x": [1, {"y": null}]}'""",
    "retry = '[1]'",
    f"retry = {levels(10_000)}",
    "timeout_us = 9223372036854775807",
    "attempt = 999999999",
    "crashes = 1000000000",
    "past_attempts = '5'",
    "past_attempts = '{\"a\": 1}'",
    """past_attempts = '[1, null, [], "x", {"worker": 5, "error": "e"}, {"worker": "w", "error": {"message": []}}]'""",
    "past_attempts = (repeat('[', 10000) || repeat(']', 10000))::jsonb",
    r"""payload = '{"label": "nul \u0000 and escape \u001b[31m"}'""",
]
"""What is odd, but keeps no job from running; nor from being looked at."""


async def with_changes(app: App, dsn: str, changes: Sequence[tuple[str, str]]) -> list[JobId]:
    """Jobs that wait, their rows changed by SQL."""
    kinds = {"Note": Note, "Carry": Carry, "Fussy": Fussy}
    ids = [await app.jobs.schedule(kinds[name]()) for name, _ in changes]
    connection = await asyncpg.connect(dsn)
    try:
        for job_id, (_, change) in zip(ids, changes, strict=True):
            await connection.execute(f"UPDATE eventflow.job SET {change} WHERE id = $1", job_id.uuid)
    finally:
        await connection.close()
    return ids


async def all_can_be_seen(app: App, dsn: str, ids: Sequence[JobId], capsys: pytest.CaptureFixture[str]) -> None:
    """By the API, and in the lists of the command line."""
    assert {record.id for record in await app.jobs.find(limit=1000)} >= set(ids)
    for job_id in ids:
        assert await app.jobs.get(job_id) is not None
    await anyio.to_thread.run_sync(lists, dsn)
    _, _, listed = capsys.readouterr().out.rpartition("\n[\n")
    assert {job["id"] for job in json.loads(f"[{listed}")} >= set(ids)


def lists(dsn: str) -> None:
    """What ``eventflow jobs list`` says to people, then to scripts."""
    for json_wanted in (False, True):
        commands = JobCommands(dsn, "eventflow", terminal=Terminal(), json=json_wanted)
        assert commands.list(state=None, queue=None, name=None, limit=1000) is ExitCode.DONE


def show(dsn: str, ids: Sequence[JobId]) -> None:
    """``eventflow jobs show`` for each."""
    for job_id in ids:
        assert JobCommands(dsn, "eventflow", terminal=Terminal(), json=False).show(job_id) is ExitCode.DONE


async def test_row_that_cannot_be_read_is_a_dead_letter_alone(
    dsn: str, journal: Journal, transitions: Transitions, capsys: pytest.CaptureFixture[str]
) -> None:
    """Claimed in one statement with others, it becomes a dead letter that says why; the others run once."""
    async with flow_of(journal, Carry, Fussy).open(dsn) as app:
        before = await app.jobs.schedule_many([Note() for _ in range(10)])
        poison = await with_changes(app, dsn, UNREADABLE)
        after = await app.jobs.schedule_many([Note() for _ in range(10)])
        await all_can_be_seen(app, dsn, poison, capsys)
        async with app.worker():
            dead = [await ended(app, job_id) for job_id in poison]
            others = [await ended(app, job_id) for job_id in (*before, *after)]
        await all_can_be_seen(app, dsn, poison, capsys)
        await anyio.to_thread.run_sync(show, dsn, poison)

    assert [(record.state, record.reason) for record in dead] == [(JobState.DEAD, "undecodable")] * len(poison)
    assert all(record.error is not None and record.error["message"] for record in dead)
    assert {(record.state, record.claim_no, record.attempt) for record in others} == {(JobState.SUCCEEDED, 1, 1)}
    assert sorted(journal.ids()) == sorted([*before, *after])
    claims = {step.transaction for step in await transitions.all() if step.entered == "running"}
    assert len(claims) == 1


async def test_odd_columns_keep_no_job_from_running_or_being_seen(
    dsn: str, journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    """Instants beyond Python's years, arrays of arrays, past attempts of any shape: shown as far as they can be."""
    async with flow_of(journal).open(dsn) as app:
        odd = await with_changes(app, dsn, [("Note", change) for change in READABLE])
        await all_can_be_seen(app, dsn, odd, capsys)
        async with app.worker():
            records = [await ended(app, job_id) for job_id in odd]
        await all_can_be_seen(app, dsn, odd, capsys)
        await anyio.to_thread.run_sync(show, dsn, odd)

    assert {record.state for record in records} == {JobState.SUCCEEDED}
    years = [record.created_at.year for record in records[:4]]
    assert years == [9999, 1, 9999, 1]
    assert (records[5].tags, records[6].tags) == (("a", "b", "c"), ("a", "b"))


@pytest.mark.parametrize("call", ["cancel", "reschedule"])
async def test_odd_rows_can_be_cancelled_and_rescheduled(dsn: str, journal: Journal, call: str) -> None:
    """What stands in a row does not keep anybody from getting rid of it, or from moving it."""
    async with flow_of(journal, Carry, Fussy).open(dsn) as app:
        odd = await with_changes(app, dsn, [*UNREADABLE, *(("Note", change) for change in READABLE)])
        for job_id in odd:
            if call == "cancel":
                assert await app.jobs.cancel(job_id) is CancelOutcome.CANCELLED
            else:
                moved = await app.jobs.reschedule(job_id, delay=timedelta(hours=1))
                assert moved is RescheduleOutcome.RESCHEDULED


class AlwaysFails(Job):
    """Fails."""

    async def execute(self, context: JobContext) -> None:
        raise ValueError(f"attempt {context.attempt}")


PAST = ["'5'", "'{\"a\": 1}'", "(repeat('[', 10000) || repeat(']', 10000))::jsonb", "NULL"]


@pytest.mark.parametrize("attempts", [1, 2])
async def test_failure_is_added_to_whatever_past_attempts_there_are(dsn: str, journal: Journal, attempts: int) -> None:
    """What somebody else wrote into them keeps no failed attempt from being settled."""
    flow = flow_of(journal)
    flow.job(retry=RetryPolicy(max_attempts=attempts, base=timedelta(0)))(AlwaysFails)
    async with flow.open(dsn) as app:
        failing = [await app.jobs.schedule(AlwaysFails()) for _ in PAST]
        for job_id, past in zip(failing, PAST, strict=True):
            await query(dsn, f"UPDATE eventflow.job SET past_attempts = {past} WHERE id = $1", job_id.uuid)
        async with app.worker():
            records = [await ended(app, job_id) for job_id in failing]

    assert {(record.state, record.reason, record.attempt) for record in records} == {(JobState.DEAD, "error", attempts)}
    last = await query(dsn, "SELECT past_attempts -> -1 ->> 'attempt' AS attempt FROM eventflow.dead_letter")
    assert [row["attempt"] for row in last] == [str(attempts)] * len(PAST)


async def test_first_and_last_attempts_are_kept(dsn: str, journal: Journal) -> None:
    """A job that fails for ever does not grow for ever: how it began and how it goes now stay with it."""
    flow = flow_of(journal)
    flow.job(retry=RetryPolicy(max_attempts=30, base=timedelta(0)))(AlwaysFails)
    async with flow.open(dsn) as app, app.worker():
        record = await ended(app, await app.jobs.schedule(AlwaysFails()))

    assert [attempt["attempt"] for attempt in record.past_attempts] == [*range(1, 6), *range(16, 31)]


INSERT_AGAIN = """
INSERT INTO eventflow.job (id, queue_id, due_at, ready_at, name, version, payload)
VALUES ($1, 1, now(), now(), 'Note', 1, $2)
"""


async def test_id_of_a_dead_letter_that_is_used_again_harms_nobody(
    dsn: str, producer_dsn: str, journal: Journal
) -> None:
    """A client writes a row with an id that a dead letter has: when that job dies too, others still end."""
    async with flow_of(journal).open(dsn) as app, app.worker():
        twice = JobId.new()
        await query(producer_dsn, INSERT_AGAIN, twice.uuid, "[]")
        first = await ended(app, twice)
        await query(producer_dsn, INSERT_AGAIN, twice.uuid, "[1]")
        other = await ended(app, await app.jobs.schedule(Note()))
        await eventually(lambda: is_empty(dsn))
        last = await ended(app, await app.jobs.schedule(Note()))

    assert (first.state, other.state, last.state) == (JobState.DEAD, JobState.SUCCEEDED, JobState.SUCCEEDED)


async def test_id_of_a_finished_job_that_is_used_again_harms_nobody(
    dsn: str, producer_dsn: str, journal: Journal
) -> None:
    """The same with a job in the history: the second one's end cannot be kept beside the first's."""
    async with flow_of(journal).open(dsn) as app, app.worker():
        twice = await app.jobs.schedule(Note())
        await ended(app, twice)
        await query(producer_dsn, INSERT_AGAIN, twice.uuid, "{}")
        other = await ended(app, await app.jobs.schedule(Note()))
        await eventually(lambda: is_empty(dsn))
        again = JobId.new()
        await query(producer_dsn, INSERT_AGAIN, again.uuid, "{}")
        await ended(app, again)
        await query(producer_dsn, INSERT_AGAIN.replace("now(), now()", "'2199-01-01', '2199-01-01'"), again.uuid, "{}")
        cancelled = await app.jobs.cancel(again)

    assert other.state is JobState.SUCCEEDED
    assert cancelled is CancelOutcome.CANCELLED


async def is_empty(dsn: str) -> bool:
    """Whether no job waits or runs."""
    [row] = await query(
        dsn, "SELECT (SELECT count(*) FROM eventflow.job) + (SELECT count(*) FROM eventflow.running) AS n"
    )
    return row["n"] == 0


WORST = [
    ("Note", "due_at = 'infinity'"),
    ("Note", "due_at = '-infinity'"),
    ("Note", "due_at = '10000-01-01 00:00+00'"),
    ("Note", "due_at = '294276-12-31 00:00+00'"),
    ("Note", "due_at = '4713-01-01 00:00+00 BC'"),
    ("Note", "ready_at = '-infinity'"),
    ("Note", "attempt = 2147483647"),
    ("Note", "claim_no = 2147483647"),
    ("Note", "attempt = -2147483648, claim_no = -2147483648, crashes = -2147483648, timeout_us = -1"),
    ("Note", f"payload = ('{{\"label\": \"' || repeat('x', {20 * 1024 * 1024}) || '\"}}')::json"),
]
"""What the tables refuse, unless somebody dropped their checks."""


async def test_rows_that_no_check_has_seen_harm_only_themselves(
    dsn: str, admin_dsn: str, journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    """An instant that no integer holds, a counter at its end, 20 MB: dead if it cannot be read, and all others run."""
    await drop_checks(admin_dsn)
    async with flow_of(journal).open(dsn) as app:
        before = await app.jobs.schedule(Note())
        worst = await with_changes(app, admin_dsn, WORST)
        after = await app.jobs.schedule(Note())
        async with app.worker():
            others = [await ended(app, job_id, within=5) for job_id in (before, after)]
            records = [await ended(app, job_id) for job_id in worst]
        await all_can_be_seen(app, dsn, worst, capsys)

    assert {(record.state, record.claim_no, record.attempt) for record in others} == {(JobState.SUCCEEDED, 1, 1)}
    assert [record.reason for record in records[:5]] == ["undecodable"] * 5


async def drop_checks(admin_dsn: str) -> None:
    """Let any value into the waiting jobs."""
    rows = await query(
        admin_dsn,
        "SELECT format('ALTER TABLE eventflow.job DROP CONSTRAINT %I', conname) AS drop"
        " FROM pg_constraint WHERE conrelid = 'eventflow.job'::regclass AND contype = 'c'",
    )
    for row in rows:
        await query(admin_dsn, row["drop"])


async def test_running_job_that_is_inserted_again_harms_nobody(dsn: str, producer_dsn: str, journal: Journal) -> None:
    """A client repeats an insert whose answer it lost, while the job runs already: others are claimed as before."""
    async with flow_of(journal).open(dsn) as app, app.worker():
        held = await app.jobs.schedule(Hold(label="held"))
        await journal.until_started("held")
        await query(producer_dsn, INSERT_AGAIN, held.uuid, "{}")
        other = await ended(app, await app.jobs.schedule(Note()), within=5)
        journal.gate.set()
        await eventually(lambda: is_empty(dsn))

    assert other.state is JobState.SUCCEEDED


async def test_claimed_job_that_is_inserted_again_waits_once(dsn: str, producer_dsn: str, journal: Journal) -> None:
    """The attempt that was under way fails and would wait again, but the job waits already."""
    flow = flow_of(journal)
    flow.job(retry=RetryPolicy(max_attempts=2, base=timedelta(0)))(FailsWhenOpen)
    later = INSERT_AGAIN.replace("now(), now()", "'2199-01-01', '2199-01-01'")
    async with flow.open(dsn) as app, app.worker():
        twice = await app.jobs.schedule(FailsWhenOpen())
        await journal.until_runs(1)
        await query(producer_dsn, later, twice.uuid, "{}")
        journal.gate.set()
        record = await in_state(app, twice, JobState.WAITING)

    assert record.due_at.year == 2199


class FailsWhenOpen(Job):
    """Fails when the gate is open."""

    async def execute(self, context: JobContext) -> None:
        journal = await context.services.aget(Journal)
        await journal.note(context)
        await journal.gate.wait()
        raise ValueError("told to")


async def test_no_row_keeps_a_dead_workers_jobs(database: Database) -> None:
    """One is waiting again already, another has counters at their ends: so that it is dead: none stays claimed."""
    driver = PostgresDriver(database.worker, database.admin)
    try:
        worker = await driver.open_worker()
        twice, most, plain = [await driver.insert() for _ in range(3)]
        await query(
            database.worker,
            "UPDATE eventflow.job SET attempt = 1000000000, crashes = 1000000000, claim_no = 1000000000 WHERE id = $1",
            most.uuid,
        )
        assert len(await driver.claim(worker, 3)) == 3
        await query(database.producer, INSERT_AGAIN, twice.uuid, "{}")
        await driver.store.rescue(Peer(worker, 0, session_gone=True))
        states = [(await driver.get(job_id)).state for job_id in (twice, most, plain)]
    finally:
        await driver.close()

    assert states == [JobState.WAITING, JobState.DEAD, JobState.WAITING]


async def test_claims_without_an_answer_are_adopted_whatever_is_in_them(database: Database) -> None:
    """An instant that no integer holds keeps a worker from none of its jobs."""
    driver = PostgresDriver(database.worker, database.admin)
    try:
        worker = await driver.open_worker()
        claims = {(await driver.insert()): change for change in ("due_at = 'infinity'", "ready_at = '-infinity'", "")}
        assert len(await driver.claim(worker, 3)) == 3
        for job_id, change in claims.items():
            if change:
                await query(database.worker, f"UPDATE eventflow.running SET {change} WHERE id = $1", job_id.uuid)
        adopted = await driver.store.claims(worker, [])
    finally:
        await driver.close()

    assert {claim.id for claim in adopted} == set(claims)


async def test_past_attempts_that_nobody_can_add_to_end_their_own_job(
    dsn: str, admin_dsn: str, journal: Journal
) -> None:
    """So deep that Postgres itself gives up: refused, and a dead letter with what it had."""
    flow = flow_of(journal)
    flow.job(retry=RetryPolicy(base=timedelta(0)))(AlwaysFails)
    async with flow.open(dsn) as app:
        deep = await app.jobs.schedule(AlwaysFails())
        connection = await asyncpg.connect(admin_dsn)
        await connection.execute("SET max_stack_depth = '6MB'")
        await connection.execute(
            "UPDATE eventflow.job SET past_attempts = (repeat('[', 25000) || repeat(']', 25000))::jsonb"
        )
        await connection.close()
        other = await app.jobs.schedule(Note())
        async with app.worker():
            record = await ended(app, deep, within=5)
            assert (await ended(app, other)).state is JobState.SUCCEEDED

    assert (record.state, record.reason) == (JobState.DEAD, "refused_by_store")


class Raises(Job):
    """Raises in the event loop."""

    kind: str

    async def execute(self, context: JobContext) -> None:
        throw(self.kind)


class RaisesInThread(Raises):
    """Raises in a thread."""

    def execute(self, context: JobContext) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        throw(self.kind)


class RaisesWhenCancelled(Raises):
    """Answers its timeout with an error."""

    async def execute(self, context: JobContext) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            throw(self.kind)


class Raise(StandaloneCommand):
    """Handled in the event loop."""

    kind: str


class RaiseInThread(StandaloneCommand):
    """Handled in a thread."""

    kind: str


async def raise_it(command: Raise, context: CommandContext) -> None:
    """Raise in the event loop."""
    throw(command.kind)


def raise_in_thread(command: RaiseInThread, context: CommandContext) -> None:
    """Raise in a thread."""
    throw(command.kind)


class TextError(Exception):
    """Has a text of its own making."""

    def __init__(self, text: Callable[[], Any]) -> None:
        super().__init__()
        self.text = text

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__


class OddText(str):
    """A text that cannot be measured."""

    __slots__ = ()

    def __len__(self) -> int:
        raise RuntimeError("no length")


class NamelessMeta(type):
    """Types of this kind have no name."""

    def __getattribute__(cls, name: str) -> Any:  # Any: whatever a type has
        if name in ("__module__", "__qualname__"):
            raise RuntimeError("no name")
        return super().__getattribute__(name)


class UnhashableMeta(type):
    """Types of this kind cannot be looked up."""

    __hash__ = None  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

    def __eq__(cls, other: object) -> bool:
        return cls is other


def nameless() -> BaseException:
    """An error whose type has no name."""
    return NamelessMeta("Nameless", (Exception,), {})()


def oddly_named() -> BaseException:
    """An error whose type has a name that no table takes."""
    return type("Odd", (Exception,), {"__module__": "\ud800\0"})()


def unhashable() -> BaseException:
    """An error whose type cannot be looked up."""
    return UnhashableMeta("Unhashable", (Exception,), {})()


def exits() -> str:
    """A text that ends the process."""
    raise SystemExit(3)


def nested(depth: int) -> BaseException:
    """A group in a group in a group."""
    error: Exception = ValueError("innermost")
    for _ in range(depth):
        error = ExceptionGroup[Exception]("nested", [error])
    return error


def circle() -> BaseException:
    """Two errors that are each other's cause."""
    error, other = ValueError("one"), ValueError("two")
    error.__cause__, other.__cause__ = other, error
    return error


def chain(length: int) -> BaseException:
    """An error with a cause with a cause with a cause."""
    error = ValueError("first")
    for _ in range(length):
        following = ValueError("then")
        following.__cause__ = error
        error = following
    return error


def recurse(depth: int = 0) -> BaseException:
    """Fail of depth."""
    return recurse(depth + 1)


KINDS: dict[str, Callable[[], BaseException]] = {
    "keyboard interrupt": KeyboardInterrupt,
    "exit": lambda: SystemExit(0),
    "generator exit": GeneratorExit,
    "stop iteration": StopIteration,
    "cancelled": lambda: asyncio.CancelledError("my own"),
    "group of all": lambda: BaseExceptionGroup(
        "all", [KeyboardInterrupt(), SystemExit(1), GeneratorExit(), asyncio.CancelledError(), ValueError()]
    ),
    "group of cancellations": lambda: BaseExceptionGroup("all", [asyncio.CancelledError(), asyncio.CancelledError()]),
    "nested": lambda: nested(20_000),
    "wide": lambda: ExceptionGroup("wide", [ValueError(number) for number in range(100_000)]),
    "circle": circle,
    "chain": lambda: chain(10_000),
    "recursion": recurse,
    "nul": lambda: ValueError("nul \0"),
    "surrogate": lambda: ValueError("\ud800"),
    "lines": lambda: ValueError("x\n" * 25_000_000),
    "no text": lambda: TextError(lambda: 5),
    "text that fails": lambda: TextError(lambda: 1 // 0),
    "text that exits": lambda: TextError(exits),
    "odd text": lambda: TextError(lambda: OddText("odd")),
    "no name": nameless,
    "odd name": oddly_named,
    "no hash": unhashable,
}


def throw(kind: str) -> None:
    """Raise an error of this kind."""
    error = KINDS[kind]()
    raise error


def poisonous(journal: Journal) -> EventFlow:
    """A flow with every way to raise."""
    flow = flow_of(journal)
    flow.job(retry=ONCE)(Raises)
    flow.job(retry=ONCE)(RaisesInThread)
    flow.job(retry=ONCE, timeout=timedelta(milliseconds=1))(RaisesWhenCancelled)
    flow.command_handler(retry=ONCE)(raise_it)
    flow.command_handler(retry=ONCE)(raise_in_thread)
    return flow


@pytest.mark.parametrize("way", [Raises, RaisesInThread, RaisesWhenCancelled, Raise, RaiseInThread])
async def test_whatever_a_handler_raises_is_that_jobs_failure(
    dsn: str, journal: Journal, way: type[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """In the event loop, in a thread, in answer to a timeout, as job or command: its dead letter says what it was."""
    kinds = [kind for kind in KINDS if kind != "generator exit" or way not in (RaisesInThread, RaiseInThread)]
    async with poisonous(journal).open(dsn) as app:
        neighbours = list(await app.jobs.schedule_many([Note() for _ in range(10)]))
        failing = {kind: await schedule(app, way(kind=kind)) for kind in kinds}
        neighbours += await app.jobs.schedule_many([Note() for _ in range(10)])
        async with app.worker():
            dead = {kind: await ended(app, job_id) for kind, job_id in failing.items()}
            others = [await ended(app, job_id) for job_id in neighbours]
        await all_can_be_seen(app, dsn, list(failing.values()), capsys)

    reasons = dict.fromkeys(kinds, "error")
    if way is RaisesWhenCancelled:
        reasons["cancelled"] = "timeout"  # it gave way, as it should
    assert {kind: record.reason for kind, record in dead.items()} == reasons
    assert {(record.state, record.claim_no, record.attempt) for record in others} == {(JobState.SUCCEEDED, 1, 1)}
    assert all(record.error is not None and record.error["type"] for record in dead.values())


@pytest.mark.parametrize("way", [RaisesInThread, RaiseInThread])
async def test_generator_exit_of_a_thread_is_that_jobs_failure(dsn: str, journal: Journal, way: type[Any]) -> None:
    """A task into which a future throws one ends, past every handler of it: so no future may."""
    async with poisonous(journal).open(dsn) as app, app.worker():
        dead = await ended(app, await schedule(app, way(kind="generator exit")), within=5)

    assert dead.reason == "error"


async def schedule(app: App, message: Job | StandaloneCommand) -> JobId:
    """Schedule a job or command."""
    return await (app.jobs.schedule(message) if isinstance(message, Job) else app.commands.schedule(message))


class Leads(Job):
    """Schedules a note, and one that is more than the store takes."""

    then: str

    async def execute(self, context: JobContext) -> None:
        context.schedule(Note(label="fine"))
        if self.then == "too big":
            context.schedule(Note(label="x" * 2_000_000))
        elif self.then == "refused":
            context.schedule(Note(), key="refused")


async def test_follow_ups_that_are_refused_concern_their_own_job(
    dsn: str, admin_dsn: str, journal: Journal, transitions: Transitions
) -> None:
    """Too large, or against a rule of the tables: that job is dead, without follow-ups; its neighbours have theirs."""
    await query(admin_dsn, "ALTER TABLE eventflow.job ADD CHECK (key <> 'refused')")
    flow = flow_of(journal)
    flow.job(retry=ONCE)(Leads)
    async with flow.open(dsn) as app:
        ids = list(await app.jobs.schedule_many([Leads(then=then) for then in ("", "too big", "refused", "")]))
        async with app.worker():
            records = [await ended(app, job_id) for job_id in ids]
            await journal.until_runs(2)

    assert [(record.state, record.reason) for record in records] == [
        (JobState.SUCCEEDED, None),
        (JobState.DEAD, "error"),
        (JobState.DEAD, "refused_by_store"),
        (JobState.SUCCEEDED, None),
    ]
    assert journal.labels() == ["fine", "fine"]
    assert {record.claim_no for record in records} == {1}


def literal(text: str) -> str:
    """A text as SQL, without what no text of Postgres has."""
    storable = text.replace("\0", "").encode("utf-8", "ignore").decode()
    return "'" + storable.replace("'", "''") + "'"


# What SQL may write into each column. Most are refused by the tables' checks; the others must do no harm.
INSTANTS = st.sampled_from(
    [
        *("now()", "now() - interval '1 hour'", "now() + interval '50 ms'", "'infinity'", "'-infinity'"),
        *("'2000-01-01'", "'2200-01-01 00:00+00'", "'0001-01-01'", "'9999-12-31'", "'10000-01-01'"),
        *("'4713-01-01 BC'", "'294276-12-31'"),
    ]
)
NUMBERS = st.sampled_from(["0", "1", "2", "-1", "3", "999999999", "1000000000", "2147483647", "-2147483648", "NULL"])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["label", "correlation_id", "causation_id", "max_attempts", "base_us", "cap_us", "attempt", "worker", "error"]
)
DOCUMENTS = st.one_of(
    JSON_VALUES,
    st.dictionaries(KEYS, JSON_VALUES, max_size=4),
    st.lists(st.dictionaries(KEYS, JSON_VALUES, max_size=4), max_size=3),
).map(lambda value: literal(json.dumps(value)))
ODD_DOCUMENTS = st.sampled_from(
    [r"""'{"label": "\ud800"}'""", r"""'{"label": "\u0000"}'""", "'1e400'", '\'{"label": 1, "label": ""}\'', "NULL"]
    + [f"{levels(count)}::text" for count in (90, 980, 9_000)]
    + [f"{digits(count)}::text" for count in (20, 4_300, 131_072)]
)
TEXTS = st.text(max_size=20).map(literal) | st.sampled_from(["NULL", "repeat('k', 201)", "''"])


COLUMNS: dict[str, st.SearchStrategy[str]] = {
    "due_at": INSTANTS,
    "ready_at": INSTANTS,
    "created_at": INSTANTS,
    "expires_at": INSTANTS,
    "priority": NUMBERS,
    "queue_id": st.sampled_from(["1", "1", "1", "99"]),
    "version": NUMBERS,
    "attempt": NUMBERS,
    "crashes": NUMBERS,
    "claim_no": NUMBERS,
    "timeout_us": NUMBERS | st.sampled_from(["9223372036854775807", "-9223372036854775808"]),
    "name": TEXTS | st.sampled_from(["'Carry'", "'Fussy'", "'PublishCommand:Raise'", "'PublishCommand:'"]),
    "payload": (DOCUMENTS | ODD_DOCUMENTS).map(lambda value: f"({value})::json"),
    "headers": (DOCUMENTS | ODD_DOCUMENTS).map(lambda value: f"({value})::json"),
    "retry": (DOCUMENTS | ODD_DOCUMENTS).map(lambda value: f"({value})::json"),
    "past_attempts": (DOCUMENTS | ODD_DOCUMENTS).map(lambda value: f"({value})::jsonb"),
    "tags": st.sampled_from(
        ["'{}'", "'{NULL}'", "'{{a,b},{c,d}}'", "'[-3:-2]={a,b}'", "array_fill('x'::text, '{9,9}')"]
    ),
    "key": TEXTS,
    "aggregate_id": TEXTS,
}
DEFAULTS = {
    "queue_id": "1",
    "due_at": "now()",
    "ready_at": "now()",
    "name": "'Note'",
    "version": "1",
    "payload": "'{}'",
}
ROWS = st.lists(
    st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=4, unique=True).flatmap(
        lambda columns: st.fixed_dictionaries({column: COLUMNS[column] for column in columns})
    ),
    min_size=5,
    max_size=25,
)


async def write(dsn: str, rows: Sequence[dict[str, str]]) -> list[JobId]:
    """The ids of those rows that the tables take."""
    written: list[JobId] = []
    connection = await asyncpg.connect(dsn, statement_cache_size=0)
    try:
        for row in rows:
            values = {**DEFAULTS, **row}
            job_id = JobId.of(new_uuid())
            with suppress(
                asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.StatementTooComplexError
            ):
                await connection.execute(
                    f"INSERT INTO eventflow.job (id, {', '.join(values)})"
                    f" VALUES ('{job_id.uuid}', {', '.join(values.values())})"
                )
                written.append(job_id)
    finally:
        await connection.close()
    return written


async def is_done(dsn: str) -> bool:
    """Whether nothing is left that this worker can claim within the next second; what failed may wait for longer."""
    [row] = await query(
        dsn,
        """
        SELECT NOT EXISTS (SELECT FROM eventflow.running) AND NOT EXISTS (
            SELECT FROM eventflow.job
            WHERE ready_at < now() + interval '1 second' AND queue_id = 1 AND priority BETWEEN 0 AND 3 AND version = 1
              AND name IN ('Note', 'Carry', 'Fussy', 'PublishCommand:Raise')
        ) AS done
        """,
    )
    done: bool = row["done"]
    return done


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
@given(rows=ROWS)
@pytest.mark.parametrize("checks", ["kept", "dropped"])
async def test_rows_written_by_anybody_harm_only_themselves(
    dsn: str, admin_dsn: str, checks: str, capsys: pytest.CaptureFixture[str], rows: list[dict[str, str]]
) -> None:
    """Whatever the tables take: the worker ends or leaves it, neighbours run once, and everything can be shown."""
    journal = Journal()
    flow = poisonous(journal)
    if checks == "dropped":
        await drop_checks(admin_dsn)
    flow.add_jobs(Carry, Fussy)
    async with flow.open(dsn) as app:
        first = list(await app.jobs.schedule_many([Note() for _ in range(5)]))
        odd = await write(dsn, rows)
        neighbours = first + list(await app.jobs.schedule_many([Note() for _ in range(5)]))
        async with app.worker():
            records = [await ended(app, job_id) for job_id in neighbours]
            await eventually(lambda: is_done(dsn))
        await all_can_be_seen(app, dsn, [*odd, *neighbours], capsys)
    await query(dsn, "DELETE FROM eventflow.job")

    assert {(record.state, record.claim_no, record.attempt) for record in records} == {(JobState.SUCCEEDED, 1, 1)}
