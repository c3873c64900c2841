"""A worker dies by SIGKILL at every step of a command; afterwards the command has had its effect exactly once."""

import sys
from collections.abc import Mapping

import pytest

from eventflow import JobId
from tests.crashes.combinations import asked_for
from tests.crashes.command_application import LedgerId
from tests.crashes.command_sweep import (
    AT_ONCE,
    CASES,
    LAST,
    CommandCombination,
    CommandScene,
    Effect,
    command_combinations,
    command_sweep,
)
from tests.crashes.scene import wait_until
from tests.support.postgres import PostgresServer

pytestmark = [
    pytest.mark.timeout(300),  # the first test waits for all that run beside it
    pytest.mark.skipif(sys.platform != "linux", reason="/proc shows whether a process stands still"),
]

EVENTS = """
SELECT name, id, stream_version = row_number() OVER stream AS is_dense, metadata ->> 'job_id' AS job_id
FROM eventflow.event WHERE aggregate_id = $1 WINDOW stream AS (PARTITION BY aggregate_name ORDER BY stream_version)
"""
RECEIPTS = "SELECT result::text FROM eventflow.command_receipt ORDER BY 1"
OTHER_JOBS = """
SELECT name FROM eventflow.any_job
WHERE id <> $1 AND state = 'succeeded' AND payload ->> 'of' IS DISTINCT FROM $2 ORDER BY 1
"""
UNFINISHED = """
SELECT count(*) FROM eventflow.any_job WHERE state <> 'succeeded' AND id NOT IN (SELECT job_id FROM eventflow.deadline)
"""
DEADLINES = """
SELECT j.due_at > clock_timestamp() AND j.state = 'waiting' AS is_to_come FROM eventflow.deadline
LEFT JOIN eventflow.any_job AS j ON j.id = job_id
"""
JOB = "SELECT state, attempt, crashes, claim_no FROM eventflow.any_job WHERE id = $1"
HELD_BY_THE_DEAD = """
SELECT (SELECT count(*) FROM eventflow.running)
    + (SELECT count(*) FROM eventflow.event_line)
    + (SELECT count(*) FROM eventflow.worker WHERE pid = ANY ($1) AND closed_at IS NULL)
    + (SELECT count(*) FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database
       WHERE d.datname = current_database() AND l.locktype = 'advisory'
       AND (l.classid::bigint << 32) | l.objid::bigint = eventflow.stream_key('Ledger', $2))
    + (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
       AND (state LIKE 'idle in transaction%' OR xact_start < clock_timestamp() - interval '1 s'))
"""


@pytest.fixture(scope="session")
def command_errors(
    request: pytest.FixtureRequest, postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[CommandCombination, Exception | None]:
    """What was wrong with each combination that the session asks for, all tried before the first test looks."""
    wanted = asked_for(request.session.items, "command_errors", CommandCombination)
    databases = [postgres.create_migrated() for _ in range(min(AT_ONCE, len(wanted)))]
    errors = command_sweep(wanted, databases, tmp_path_factory.mktemp("commands"), judge)
    for database in databases:
        postgres.drop(database.name)
    return errors


@pytest.mark.parametrize("combination", command_combinations("dies"), ids=str)
def test_effect_is_single_after_a_crash(
    combination: CommandCombination, command_errors: Mapping[CommandCombination, Exception | None]
) -> None:
    """
    Another worker finishes what the dead one had in its hands, in its first attempt or in one after a failure.

    Afterwards there are: each event once, in dense versions; each follow-up job once; the receipt; the deadline that is
    to come, and none that has been; each row that the handler wrote in its transaction once. Nobody holds anything.
    """
    _raise(command_errors[combination])


@pytest.mark.parametrize("combination", command_combinations("late"), ids=str)
def test_effect_is_single_after_what_looked_like_a_crash(
    combination: CommandCombination, command_errors: Mapping[CommandCombination, Exception | None]
) -> None:
    """The worker stood still until another had taken its job, and done it: what it writes when it goes on is void."""
    _raise(command_errors[combination])


@pytest.mark.parametrize("combination", command_combinations("lives"), ids=str)
def test_other_points_are_not_passed_before_a_crash(
    combination: CommandCombination, command_errors: Mapping[CommandCombination, Exception | None]
) -> None:
    """What is listed as unreachable is: a worker that would stop there goes on to the end."""
    _raise(command_errors[combination])


def test_a_crash_is_tried_at_a_dozen_points() -> None:
    """Each point of the code is reached in some case, and not all cases are excused from it."""
    reached = {point for combination in command_combinations("dies") for point in combination.points}

    assert reached >= {point for case in CASES.values() for point in case.unreachable}
    assert len(reached) >= 12


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error


async def judge(scene: CommandScene, combination: CommandCombination, job_id: JobId, ledger: LedgerId) -> None:
    """Check everything that a command leaves behind, in a scene in which nothing is left to do."""
    killed = [kill.pid for kill in scene.kills]

    async def nothing_is_held() -> bool:
        return not await scene.admin.fetchval(HELD_BY_THE_DEAD, killed, ledger)

    await wait_until(nothing_is_held)
    expected = CASES[combination.case].effect
    assert await _effect(scene, job_id, ledger) == expected
    assert not await scene.admin.fetchval(UNFINISHED)
    row = await scene.admin.fetchrow(JOB, job_id.uuid)
    claims = combination.attempt + combination.crashes
    assert row is not None
    assert tuple(row.values()) == ("succeeded", combination.attempt, combination.crashes, claims)


async def _effect(scene: CommandScene, job_id: JobId, ledger: LedgerId) -> Effect:
    events = await scene.admin.fetch(EVENTS, ledger)
    assert all(event["is_dense"] for event in events)
    assert len({event["id"] for event in events}) == len(events)
    if events and events[-1]["name"] != "Told":  # what the subscriber hears was there before its job
        assert events[-1]["job_id"] == job_id
    deadlines = await scene.admin.fetch(DEADLINES)
    assert all(row["is_to_come"] for row in deadlines)
    return Effect(
        events=tuple(event["name"] for event in events),
        receipts=tuple(row["result"] for row in await scene.admin.fetch(RECEIPTS)),
        follow_ups=tuple(row["name"] for row in await scene.admin.fetch(OTHER_JOBS, job_id.uuid, LAST)),
        deadlines=len(deadlines),
        own_rows=await scene.admin.fetchval("SELECT count(*) FROM own_row"),
    )
