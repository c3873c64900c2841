"""Jobs start at their due time: never before it by the database's clock, and soon after it."""

from datetime import datetime, timedelta
from statistics import median

import pytest

from eventflow import CancelOutcome, JobState, RescheduleOutcome, WorkerSettings
from tests.support.journal import Hold, Journal, Note, duplicates, ended, flow_of, in_state, query

LONG = timedelta(hours=1)
FAR_AHEAD = WorkerSettings(claim_ahead=60.0)
"""Takes jobs into memory up to a minute before they are due, when it claims."""


async def database_time(dsn: str) -> datetime:
    """What the database's clock shows."""
    [row] = await query(dsn, "SELECT clock_timestamp() AS now")
    now: datetime = row["now"]
    return now


@pytest.mark.parametrize("queue", [None, "mail"])
@pytest.mark.parametrize("settings", [WorkerSettings(), FAR_AHEAD], ids=["default", "far_ahead"])
async def test_no_handler_starts_before_its_due_time(dsn: str, queue: str | None, settings: WorkerSettings) -> None:
    """By the database's ``clock_timestamp()`` at the handler's start, with no tolerance."""
    journal = Journal(clock_dsn=dsn)
    flow = flow_of(journal)
    async with flow.open(dsn) as app, app.worker(settings), flow.open(dsn) as elsewhere:
        start = await database_time(dsn)
        for scheduling in (app, elsewhere):
            await scheduling.jobs.schedule(Note(), queue=queue)
            for number in range(25):
                await scheduling.jobs.schedule(Note(), delay=timedelta(milliseconds=40 * number), queue=queue)
                await scheduling.jobs.schedule(
                    Note(), at=start + timedelta(milliseconds=200 + 30 * number), queue=queue
                )
        await journal.until_runs(102)

    early = [run for run in journal.runs if run.database_time is None or run.database_time < run.due_at]
    assert early == []
    assert duplicates(journal.ids()) == []


async def test_delay_is_added_by_the_database(dsn: str, journal: Journal) -> None:
    """The due time is the insert's database time plus the delay, to the microsecond."""
    async with flow_of(journal).open(dsn) as app:
        before = await database_time(dsn)
        record = await app.jobs.get(await app.jobs.schedule(Note(), delay=LONG))
        after = await database_time(dsn)

    assert record is not None
    assert record.due_at == record.created_at + LONG
    assert before <= record.created_at <= after


async def test_idle_worker_starts_jobs_within_milliseconds(dsn: str, only_when_woken: WorkerSettings) -> None:
    """Half of all jobs start within 50 ms of their due time, scheduled for now or for later, here or elsewhere."""
    journal = Journal(clock_dsn=dsn)
    flow = flow_of(journal)
    async with flow.open(dsn) as app, app.worker(only_when_woken), flow.open(dsn) as elsewhere:
        for number in range(40):
            scheduling = elsewhere if number % 2 else app
            delay = timedelta(milliseconds=20 * (number % 5))
            await ended(app, await scheduling.jobs.schedule(Note(), delay=delay))

    lateness = [(run.database_time - run.due_at).total_seconds() for run in journal.runs if run.database_time]
    assert len(lateness) == 40
    assert median(lateness) < 0.05


async def test_earlier_job_scheduled_later_wakes_the_worker(
    dsn: str, journal: Journal, only_when_woken: WorkerSettings
) -> None:
    """A worker that waits for a distant due time takes up a nearer one at once."""
    flow = flow_of(journal)
    async with flow.open(dsn) as app, app.worker(only_when_woken), flow.open(dsn) as elsewhere:
        await app.jobs.schedule(Note(label="distant"), delay=LONG)
        await ended(app, await app.jobs.schedule(Note(label="soon"), delay=timedelta(milliseconds=700)))
        await app.jobs.schedule(Note(label="last"), delay=timedelta(milliseconds=800))
        await elsewhere.jobs.schedule(Note(label="first"), delay=timedelta(milliseconds=400))
        await journal.until_started("first", "last")

    assert journal.labels() == ["soon", "first", "last"]


async def test_ten_thousand_jobs_due_at_one_instant(dsn: str, admin_dsn: str, journal: Journal) -> None:
    """All of them run, each exactly once, none early."""
    async with flow_of(journal).open(dsn) as app, app.worker():
        at = await database_time(dsn) + timedelta(seconds=1)
        ids = await app.jobs.schedule_many([Note()] * 10_000, at=at)
        await journal.until_runs(10_000, within=60.0)
        [row] = await query(admin_dsn, "SELECT count(*) AS jobs FROM eventflow.job")
        assert row["jobs"] == 0

    assert len(journal.runs) == 10_000
    assert set(journal.ids()) == set(ids)
    [row] = await query(
        admin_dsn,
        "SELECT count(*) AS ended, min(started_at) AS first, max(claim_no) AS claims FROM eventflow.job_history",
    )
    assert row["ended"] == 10_000
    assert row["first"] >= at


async def test_waiting_job_is_cancelled_and_rescheduled(dsn: str, journal: Journal) -> None:
    """One that no worker holds yet: cancelled at once, and moved at once."""
    async with flow_of(journal).open(dsn) as app, app.worker():
        cancelled = await app.jobs.schedule(Note(label="cancelled"), delay=LONG)
        moved = await app.jobs.schedule(Note(label="moved"), delay=LONG)

        assert await app.jobs.cancel(cancelled) is CancelOutcome.CANCELLED
        assert await app.jobs.reschedule(moved, delay=timedelta(0)) is RescheduleOutcome.RESCHEDULED
        assert (await ended(app, moved)).state is JobState.SUCCEEDED
        assert (await ended(app, cancelled)).state is JobState.CANCELLED
        assert await app.jobs.cancel(moved) is CancelOutcome.NOT_FOUND
        assert await app.jobs.reschedule(moved, delay=LONG) is RescheduleOutcome.NOT_FOUND

    assert journal.labels() == ["moved"]


async def test_running_job_is_cancelled_by_its_worker(
    dsn: str, journal: Journal, only_when_woken: WorkerSettings
) -> None:
    """The handler is cancelled within moments, from another process too, and not tried again."""
    flow = flow_of(journal)
    async with flow.open(dsn) as app, app.worker(only_when_woken), flow.open(dsn) as elsewhere:
        job_id = await app.jobs.schedule(Hold(label="held"))
        await journal.until_started("held")

        assert await elsewhere.jobs.cancel(job_id) is CancelOutcome.REQUESTED
        record = await ended(app, job_id)

    assert record.state is JobState.CANCELLED
    assert (journal.cancelled, journal.finished, journal.labels()) == (["held"], [], ["held"])


async def test_running_job_is_not_rescheduled(dsn: str, journal: Journal) -> None:
    """It has started: the request comes too late and changes nothing."""
    async with flow_of(journal).open(dsn) as app, app.worker():
        job_id = await app.jobs.schedule(Hold(label="held"))
        await journal.until_started("held")
        assert await app.jobs.reschedule(job_id, delay=LONG) is RescheduleOutcome.REQUESTED
        await ended(app, await app.jobs.schedule(Note()))
        journal.gate.set()
        record = await ended(app, job_id)

    assert record.state is JobState.SUCCEEDED
    assert journal.labels().count("held") == 1


async def test_job_in_a_workers_memory_is_cancelled(dsn: str, journal: Journal) -> None:
    """Claimed ahead of its time and not started: it never runs."""
    async with flow_of(journal).open(dsn) as app, app.worker(FAR_AHEAD):
        job_id = await app.jobs.schedule(Note(label="never"), delay=timedelta(seconds=30))
        await app.jobs.schedule(Note(label="claimed with it"))
        await in_state(app, job_id, JobState.RUNNING)

        assert await app.jobs.cancel(job_id) is CancelOutcome.REQUESTED
        record = await ended(app, job_id)

    assert (record.state, record.started_at, journal.labels()) == (JobState.CANCELLED, None, ["claimed with it"])


async def test_job_in_a_workers_memory_is_rescheduled(dsn: str, journal: Journal) -> None:
    """Later: it waits again, the attempt given back. Sooner: it runs then."""
    async with flow_of(journal).open(dsn) as app, app.worker(FAR_AHEAD):
        later = await app.jobs.schedule(Note(label="later"), delay=timedelta(seconds=30))
        sooner = await app.jobs.schedule(Note(label="sooner"), delay=timedelta(seconds=30))
        await app.jobs.schedule(Note(label="claimed with them"))
        for job_id in (later, sooner):
            await in_state(app, job_id, JobState.RUNNING)

        assert await app.jobs.reschedule(later, delay=LONG) is RescheduleOutcome.REQUESTED
        assert await app.jobs.reschedule(sooner, delay=timedelta(milliseconds=50)) is RescheduleOutcome.REQUESTED
        waiting = await in_state(app, later, JobState.WAITING)
        record = await ended(app, sooner)

    assert (waiting.attempt, waiting.claim_no) == (0, 1)
    assert waiting.due_at > await database_time(dsn) + timedelta(minutes=59)
    assert (record.state, record.attempt, record.claim_no) == (JobState.SUCCEEDED, 1, 2)
    assert journal.labels() == ["claimed with them", "sooner"]
