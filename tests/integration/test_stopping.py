"""A worker that stops: nothing more is claimed, what runs may end, what has not started goes back."""

from datetime import UTC, datetime, timedelta

import anyio
import pytest

from eventflow import App, JobState, WorkerSettings
from reliability.rig.transitions import Transitions
from tests.support.journal import Hold, Journal, Note, ended, flow_of, in_state, query
from tests.support.waiting import until


async def state_of(app: App, job_id: str) -> tuple[JobState, int, int, int]:
    """State, attempts, claims and crashes of a job."""
    [record] = [record for record in await app.jobs.find() if record.id == job_id]
    return record.state, record.attempt, record.claim_no, record.crashes


async def test_running_jobs_may_end_within_the_grace_period(dsn: str, journal: Journal) -> None:
    """Stopping waits for them, and writes what came of them before it returns."""
    async with flow_of(journal).open(dsn) as app:
        async with app.worker() as worker:
            job_id = await app.jobs.schedule(Hold(label="held"))
            await journal.until_started("held")
            worker.stop()
            journal.gate.set()

        assert await state_of(app, job_id) == (JobState.SUCCEEDED, 1, 1, 0)
    assert (journal.finished, journal.cancelled) == (["held"], [])


async def test_jobs_that_outlast_the_grace_period_are_given_back(
    dsn: str, journal: Journal, transitions: Transitions
) -> None:
    """They are cancelled and wait again, with the attempt refunded and no crash counted."""
    async with flow_of(journal).open(dsn) as app:
        async with app.worker(WorkerSettings(grace_period=0.1)):
            job_id = await app.jobs.schedule(Hold(label="held"))
            await journal.until_started("held")

        assert await state_of(app, job_id) == (JobState.WAITING, 0, 1, 0)
        assert journal.cancelled == ["held"]
        journal.gate.set()
        async with app.worker():
            assert (await ended(app, job_id)).attempt == 1
    assert await transitions.states(job_id) == ["waiting", "running", "waiting", "running", "succeeded"]


async def test_unstarted_jobs_are_given_back(dsn: str, journal: Journal) -> None:
    """Claimed ahead of their time, or in line for a slot: they wait again as if never claimed, at once."""
    settings = WorkerSettings(concurrency=3, claim_ahead=60.0, queue_patience=60.0, grace_period=0.0)
    async with flow_of(journal).open(dsn) as app:
        async with app.worker(settings):
            ahead = await app.jobs.schedule(Note(label="ahead"), delay=timedelta(seconds=40))
            in_line = await app.jobs.schedule(Note(label="in line"), delay=timedelta(seconds=0.5))
            due_at = (await in_state(app, in_line, JobState.RUNNING)).due_at
            await in_state(app, ahead, JobState.RUNNING)
            await app.jobs.schedule_many([Hold(label="held")] * 3)
            await journal.until_runs(3)
            await until(lambda: datetime.now(UTC) > due_at + timedelta(seconds=0.1))
        [row] = await query(dsn, "SELECT count(*) AS running FROM eventflow.running")

        assert row["running"] == 0
        assert journal.labels() == ["held"] * 3
        for job_id in (ahead, in_line):
            assert await state_of(app, job_id) == (JobState.WAITING, 0, 1, 0)
        record = await app.jobs.get(ahead)
        assert record is not None
        assert record.due_at - record.created_at == timedelta(seconds=40)
        assert list(record.past_attempts) == []


async def test_nothing_is_claimed_after_the_stop(dsn: str, journal: Journal) -> None:
    """While running jobs have their grace period, new ones are left to others."""
    flow = flow_of(journal)
    async with flow.open(dsn) as app, flow.open(dsn) as elsewhere:
        async with app.worker() as worker:
            held = await app.jobs.schedule(Hold(label="held"))
            await journal.until_started("held")
            worker.stop()
            late = await app.jobs.schedule(Note(label="late"))
            async with elsewhere.worker():
                record = await ended(elsewhere, late)
            journal.gate.set()
        first = await ended(app, held)

    assert record.worker_id != first.worker_id


async def test_stopped_worker_is_closed(dsn: str, admin_dsn: str, journal: Journal) -> None:
    """Others see at once that it left; its sessions are gone."""
    async with flow_of(journal).open(dsn) as app:
        async with app.worker():
            await ended(app, await app.jobs.schedule(Note()))
        [row] = await query(admin_dsn, "SELECT closed_at IS NOT NULL AS closed FROM eventflow.worker")
        [listening] = await query(
            admin_dsn,
            "SELECT count(*) AS sessions FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE 'eventflow listen%'",
        )
    assert (row["closed"], listening["sessions"]) == (True, 0)


async def test_cancelled_worker_gives_back_what_it_held(dsn: str, journal: Journal) -> None:
    """Cancellation gives no grace, and still leaves no job behind."""
    async with flow_of(journal).open(dsn) as app:
        job_id = await app.jobs.schedule(Hold(label="held"))
        async with anyio.create_task_group() as group:
            await group.start(app.create_worker(WorkerSettings()).run)
            await journal.until_started("held")
            group.cancel_scope.cancel()

        assert await state_of(app, job_id) == (JobState.WAITING, 0, 1, 0)
    assert journal.cancelled == ["held"]


async def test_error_of_the_block_stops_the_worker_and_is_raised(dsn: str, journal: Journal) -> None:
    """The worker's end does not hide what went wrong beside it."""

    async def work_and_fail() -> None:
        async with flow_of(journal).open(dsn) as app, app.worker():
            await ended(app, await app.jobs.schedule(Note()))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await work_and_fail()
