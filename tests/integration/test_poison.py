"""Poison: whatever somebody wrote into a row, that job alone is affected."""

from collections.abc import Sequence
from datetime import timedelta

import anyio
import asyncpg
import pytest

from eventflow import (
    App,
    CancelOutcome,
    Job,
    JobContext,
    JobId,
    JobState,
    RescheduleOutcome,
    RetryPolicy,
)
from eventflow.cli.exits import ExitCode
from eventflow.cli.jobs import JobCommands
from eventflow.cli.terminal import Terminal
from eventflow.jobs import Peer
from reliability.rig.transitions import Transitions
from tests.support.job_stores import PostgresDriver
from tests.support.journal import Hold, Journal, Note, ended, flow_of, in_state, query
from tests.support.poison import Carry, Fussy, all_can_be_seen, digits, drop_checks, levels
from tests.support.postgres import Database
from tests.support.waiting import eventually

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
