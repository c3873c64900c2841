"""Rows of any content that the tables take: workers, neighbours and the command line live with all of them."""

import json
from collections.abc import Sequence
from contextlib import suppress

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from eventflow import JobId, JobState
from eventflow.ids import new_uuid
from tests.integration.test_raised_errors import poisonous
from tests.support.journal import Journal, Note, ended, query
from tests.support.poison import Carry, Fussy, all_can_be_seen, digits, drop_checks, levels
from tests.support.waiting import eventually


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
