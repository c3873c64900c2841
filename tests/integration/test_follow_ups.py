"""What a handler schedules exists exactly with its success."""

from datetime import timedelta

import pytest

from eventflow import (
    Command,
    CommandContext,
    DomainError,
    EventFlow,
    Identity,
    InvalidScheduleError,
    Job,
    JobContext,
    JobState,
    RetryPolicy,
    StandaloneCommand,
)
from reliability.rig.transitions import Transitions
from tests.support.journal import Journal, Note, count_jobs, ended, flow_of


class OrderId(Identity):
    """An order."""


class Lead(Job):
    """Schedules two jobs, and fails where it is told to."""

    failures: int = 0

    async def execute(self, context: JobContext) -> None:
        context.schedule(Note(label="now"))
        context.schedule(Note(label="later"), delay=timedelta(hours=1), queue="slow")
        if context.attempt <= self.failures:
            raise RuntimeError("not yet")


class Ship(Command[OrderId, int]):
    """Handled by :func:`ship`."""

    refused: bool = False


class Announce(StandaloneCommand):
    """Handled by :func:`announce`."""


async def ship(command: Ship, context: CommandContext) -> int:
    """Schedules a command and a job."""
    context.schedule(Announce())
    context.schedule(Note(label="shipped"))
    if command.refused:
        raise DomainError("no such order")
    return 7


async def announce(command: Announce, context: CommandContext) -> None:
    """Schedules a job."""
    context.schedule(Note(label="announced"))


def shop(journal: Journal) -> EventFlow:
    """The flow of these commands and jobs."""
    flow = flow_of(journal)
    flow.job(retry=RetryPolicy(max_attempts=3, base=timedelta(0)))(Lead)
    flow.command_handler(ship)
    flow.command_handler(announce)
    return flow


async def test_follow_ups_come_with_the_completion(dsn: str, journal: Journal, transitions: Transitions) -> None:
    """They are inserted in the transaction in which the job ends, and only there."""
    async with shop(journal).open(dsn) as app, app.worker():
        lead = await app.jobs.schedule(Lead())
        await ended(app, lead)
        await journal.until_started("now")
        [later] = await app.jobs.find(queue="slow")

    [completed] = [step for step in await transitions.of(lead) if step.entered == "succeeded"]
    inserted = [step for step in await transitions.all() if step.left is None and step.job_id != lead]
    assert [step.transaction for step in inserted] == [completed.transaction] * 2
    assert later.due_at == later.created_at + timedelta(hours=1)


async def test_failed_attempts_schedule_nothing(dsn: str, admin_dsn: str, journal: Journal) -> None:
    """Two attempts fail after they scheduled: only the third one's follow-ups exist."""
    async with shop(journal).open(dsn) as app, app.worker():
        record = await ended(app, await app.jobs.schedule(Lead(failures=2)))
        await journal.until_started("now")

    assert (record.state, record.attempt) == (JobState.SUCCEEDED, 3)
    assert await count_jobs(admin_dsn) == 3


async def test_dead_letter_schedules_nothing(dsn: str, admin_dsn: str, journal: Journal) -> None:
    """No attempt succeeded."""
    async with shop(journal).open(dsn) as app, app.worker():
        record = await ended(app, await app.jobs.schedule(Lead(failures=3)))

    assert record.state is JobState.DEAD
    assert await count_jobs(admin_dsn) == 1


async def test_scheduled_command_leads_to_others(dsn: str, journal: Journal) -> None:
    """A command published by a worker schedules with the completion of its job; all share one correlation id."""
    async with shop(journal).open(dsn) as app, app.worker():
        order_id = OrderId.new()
        first = await app.commands.schedule(Ship(aggregate_id=order_id), delay=timedelta(milliseconds=10))
        await journal.until_started("shipped", "announced")
        for job_id in journal.ids():
            await ended(app, job_id)
        records = {record.id: record for record in await app.jobs.find()}

    assert records[first].aggregate_id == order_id
    assert {record.headers["correlation_id"] for record in records.values()} == {first}
    [announcement] = [record for record in records.values() if record.name == "PublishCommand:Announce"]
    assert announcement.headers["causation_id"] == first
    [announced] = [r for r in records.values() if r.payload == {"label": "announced"}]
    assert announced.headers["causation_id"] == announcement.id


async def test_published_command_schedules_when_it_succeeds(dsn: str, admin_dsn: str, journal: Journal) -> None:
    """``publish`` returns the handler's result; a refused command schedules nothing."""
    async with shop(journal).open(dsn) as app:
        with pytest.raises(DomainError):
            await app.commands.publish(Ship(aggregate_id=OrderId.new(), refused=True))
        assert await count_jobs(admin_dsn) == 0

        assert await app.commands.publish(Ship(aggregate_id=OrderId.new())) == 7
        assert await count_jobs(admin_dsn) == 2


class LeadsNowhere(Job):
    """Schedules something that cannot be."""

    async def execute(self, context: JobContext) -> None:
        context.schedule(Note(label="fine"))
        context.schedule(Note(), delay=timedelta(seconds=-1))


async def test_bad_follow_up_fails_its_attempt(dsn: str, admin_dsn: str, journal: Journal) -> None:
    """The handler gets the error where it schedules; nothing of the attempt is written."""
    flow = flow_of(journal)
    flow.job(retry=RetryPolicy(max_attempts=1))(LeadsNowhere)
    async with flow.open(dsn) as app, app.worker():
        record = await ended(app, await app.jobs.schedule(LeadsNowhere()))

    assert record.state is JobState.DEAD
    assert record.error is not None
    assert InvalidScheduleError.__name__ in record.error["type"]
    assert await count_jobs(admin_dsn) == 1
