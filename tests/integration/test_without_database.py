"""Applications that keep their jobs in memory, or run them at once: for tests and prototypes."""

from datetime import UTC, datetime, timedelta

import pytest

from eventflow import (
    CancelOutcome,
    EventFlowError,
    Job,
    JobContext,
    JobState,
    ManualClock,
    RetryPolicy,
    WorkerSettings,
)
from tests.support.journal import Journal, Note, ended, flow_of

HOUR = timedelta(hours=1)


async def test_application_in_memory_goes_by_its_clock(journal: Journal) -> None:
    """Nothing happens until the test advances the clock; then everything that is due runs, and what follows."""
    clock = ManualClock(datetime(2030, 1, 1, tzinfo=UTC))
    async with flow_of(journal).open("memory:", clock=clock) as app:
        await app.jobs.schedule(Note(label="month"), delay=timedelta(days=30))
        moved = await app.jobs.schedule(Note(label="moved"), at=datetime(2030, 6, 1, tzinfo=UTC))
        cancelled = await app.jobs.schedule(Note(label="cancelled"), delay=HOUR)
        await app.jobs.schedule(Note(label="now"))

        assert (await app.run_due(), journal.labels()) == (1, ["now"])
        assert await app.jobs.cancel(cancelled) is CancelOutcome.CANCELLED
        await app.jobs.reschedule(moved, delay=HOUR)
        clock.advance(timedelta(days=30))
        assert (await app.run_due(), journal.labels()) == (2, ["now", "moved", "month"])
        assert journal.runs[-1].due_at == datetime(2030, 1, 31, tzinfo=UTC)
        assert await app.run_due() == 0
        with pytest.raises(EventFlowError):
            app.transaction()


class Chain(Job):
    """Leads to the next."""

    left: int

    async def execute(self, context: JobContext) -> None:
        await (await context.services.aget(Journal)).note(context, str(self.left))
        if context.attempt == 1 and self.left == 2:
            raise RuntimeError("once")
        if self.left:
            context.schedule(Chain(left=self.left - 1), delay=HOUR)


async def test_retries_and_follow_ups_in_memory(journal: Journal) -> None:
    """The same policies as on Postgres, on the clock of the test."""
    clock = ManualClock()
    flow = flow_of(journal)
    flow.job(retry=RetryPolicy(base=timedelta(0)))(Chain)
    async with flow.open("memory:", clock=clock) as app:
        first = await app.jobs.schedule(Chain(left=2))
        assert await app.run_due() == 2
        record = await app.jobs.get(first)
        for _ in range(2):
            clock.advance(HOUR)
            assert await app.run_due() == 1

    assert journal.labels() == ["2", "2", "1", "0"]
    assert record is not None
    assert (record.state, record.attempt, len(record.past_attempts)) == (JobState.SUCCEEDED, 2, 1)


async def test_worker_in_memory(journal: Journal) -> None:
    """The real worker over the store in memory, on real time."""
    async with flow_of(journal).open("memory:") as app, app.worker(WorkerSettings(concurrency=5)):
        ids = await app.jobs.schedule_many([Note(label="many")] * 50)
        ids = [*ids, await app.jobs.schedule(Note(label="soon"), delay=timedelta(milliseconds=50))]
        for job_id in ids:
            assert (await ended(app, job_id)).state is JobState.SUCCEEDED

    assert sorted(journal.ids()) == sorted(ids)


async def test_instant_application_runs_jobs_where_they_are_scheduled(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    """Through JSON as stored ones, follow-ups too; a delay is ignored with a warning."""
    flow = flow_of(journal, Chain)
    async with flow.open("instant:") as app:
        await app.jobs.schedule(Note(label="at once"))
        assert (journal.labels(), caplog.messages) == (["at once"], [])
        await app.jobs.schedule(Chain(left=1))
        await app.jobs.schedule_many([Note(label="a"), Note(label="b")])
        with pytest.raises(EventFlowError):
            app.create_worker(WorkerSettings())

    assert journal.labels() == ["at once", "1", "0", "a", "b"]
    assert caplog.messages == ["job.ran_instead_of_waiting"]
