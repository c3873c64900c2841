"""What becomes of jobs that fail: retries, dead letters, ignored errors, timeouts."""

import threading
from datetime import timedelta

import pytest

from eventflow import (
    CommandContext,
    DomainError,
    Job,
    JobContext,
    JobState,
    OnError,
    RetryPolicy,
    StandaloneCommand,
    SystemClock,
    WorkerSettings,
)
from reliability.rig.transitions import Transitions
from tests.support.journal import Hold, Journal, Note, ended, flow_of, in_state
from tests.support.waiting import until

AT_ONCE = RetryPolicy(max_attempts=3, base=timedelta(0))


class FleetingError(Exception):
    """Passes by itself."""


class HopelessError(Exception):
    """Will happen again."""


class MinorError(HopelessError):
    """Nothing to worry about."""


class RarelyFails(Job):
    """Fails until its n-th attempt."""

    succeeds_at: int

    async def execute(self, context: JobContext) -> None:
        await (await context.services.aget(Journal)).note(context)
        if context.attempt < self.succeeds_at:
            raise FleetingError(f"attempt {context.attempt}")


class Fails(Job):
    """Always fails, with the error that it names."""

    error: str

    async def execute(self, context: JobContext) -> None:
        await (await context.services.aget(Journal)).note(context)
        errors = (FleetingError, HopelessError, MinorError, DomainError)
        raise {error.__name__: error for error in errors}[self.error]("said so")


async def test_failed_attempt_is_made_again(dsn: str, journal: Journal, transitions: Transitions) -> None:
    """Each attempt is counted and stays with the job, with its worker, times and error."""
    flow = flow_of(journal)
    flow.job(retry=AT_ONCE)(RarelyFails)
    async with flow.open(dsn) as app, app.worker():
        job_id = await app.jobs.schedule(RarelyFails(succeeds_at=3))
        record = await ended(app, job_id)

    assert (record.state, record.attempt) == (JobState.SUCCEEDED, 3)
    assert [run.attempt for run in journal.runs] == [1, 2, 3]
    assert [(a["attempt"], a["outcome"], a["error"]["message"]) for a in record.past_attempts] == [
        (1, "retry", "attempt 1"),
        (2, "retry", "attempt 2"),
    ]
    assert all(a["worker"] == record.worker_id and a["started_at"] <= a["ended_at"] for a in record.past_attempts)
    assert "FleetingError" in record.past_attempts[0]["error"]["type"]
    assert "execute" in record.past_attempts[0]["error"]["traceback"]
    assert await transitions.states(job_id) == [*["waiting", "running"] * 3, "succeeded"]


async def test_job_is_dead_after_its_last_attempt(dsn: str, journal: Journal) -> None:
    """A dead letter keeps payload, error and all attempts; nobody runs it again."""
    flow = flow_of(journal)
    flow.job(retry=AT_ONCE)(Fails)
    async with flow.open(dsn) as app, app.worker():
        record = await ended(app, await app.jobs.schedule(Fails(error="FleetingError")))

    assert (record.state, record.reason, record.attempt) == (JobState.DEAD, "error", 3)
    assert record.payload == {"error": "FleetingError"}
    assert record.error is not None
    assert record.error["message"] == "said so"
    assert [a["outcome"] for a in record.past_attempts] == ["retry", "retry", "dead"]
    assert len(journal.runs) == 3


async def test_exception_types_have_their_meaning(dsn: str, journal: Journal) -> None:
    """The nearest in the exception's ancestry decides: dead-letter at once, ignore, or retry."""
    flow = flow_of(journal)
    rules: dict[type[BaseException], OnError] = {HopelessError: OnError.DEAD_LETTER, MinorError: OnError.IGNORE}
    flow.job(retry=RetryPolicy(max_attempts=2, base=timedelta(0), on=rules))(Fails)
    async with flow.open(dsn) as app, app.worker():
        records = {
            error: await ended(app, await app.jobs.schedule(Fails(error=error)))
            for error in ("HopelessError", "MinorError", "FleetingError", "DomainError")
        }

    assert {error: (record.state, record.attempt) for error, record in records.items()} == {
        "HopelessError": (JobState.DEAD, 1),
        "MinorError": (JobState.IGNORED, 1),
        "FleetingError": (JobState.DEAD, 2),
        "DomainError": (JobState.DEAD, 1),
    }
    [attempt] = records["MinorError"].past_attempts
    assert (attempt["outcome"], attempt["error"]["message"]) == ("ignored", "said so")


async def test_retry_waits(dsn: str, journal: Journal) -> None:
    """Between attempts the job waits in the database, for a time within the policy's bounds; its due time stays."""
    flow = flow_of(journal, Fails)
    slow = RetryPolicy(max_attempts=2, base=timedelta(hours=10), cap=timedelta(hours=10))
    async with flow.open(dsn) as app, app.worker():
        job_id = await app.jobs.schedule(Fails(error="FleetingError"), retry=slow)
        await journal.until_runs(1)
        record = await in_state(app, job_id, JobState.WAITING)

    assert record.ready_at is not None
    assert record.due_at == record.created_at < record.ready_at < record.created_at + timedelta(hours=10, minutes=1)
    assert (record.attempt, record.past_attempts[0]["attempt"]) == (1, 1)


async def test_call_replaces_the_numbers_of_the_registration(dsn: str, journal: Journal) -> None:
    """``retry=`` of a call: its numbers, with the registration's rules for exception types."""
    flow = flow_of(journal)
    flow.job(retry=RetryPolicy(max_attempts=1, on={MinorError: OnError.IGNORE}))(Fails)
    async with flow.open(dsn) as app, app.worker():
        twice = RetryPolicy(max_attempts=2, base=timedelta(0))
        fleeting = await ended(app, await app.jobs.schedule(Fails(error="FleetingError"), retry=twice))
        minor = await ended(app, await app.jobs.schedule(Fails(error="MinorError"), retry=twice))

    assert (fleeting.state, fleeting.attempt, minor.state) == (JobState.DEAD, 2, JobState.IGNORED)


async def test_refused_command_is_a_dead_letter(dsn: str, journal: Journal) -> None:
    """A :class:`DomainError` of a command handler is not worth a retry."""
    flow = flow_of(journal)

    class Refuse(StandaloneCommand):
        pass

    async def refuse(command: Refuse, context: CommandContext) -> None:
        raise DomainError("the shop is closed", "and so is the bar")

    refuse.__annotations__["command"] = Refuse
    flow.command_handler(refuse)
    async with flow.open(dsn) as app, app.worker():
        record = await ended(app, await app.commands.schedule(Refuse()))

    assert (record.state, record.name, record.attempt) == (JobState.DEAD, "PublishCommand:Refuse", 1)
    assert record.error is not None
    assert record.error["message"] == "the shop is closed; and so is the bar"


@pytest.mark.parametrize("given_by", ["registration", "call"])
async def test_attempt_that_takes_too_long_is_cancelled(dsn: str, journal: Journal, given_by: str) -> None:
    """The timeout of the type, or of the call, cancels the handler and counts as a failure."""
    flow = flow_of(journal)
    timeout = timedelta(milliseconds=50)

    class Slow(Hold):
        pass

    registered, called = (timeout, None) if given_by == "registration" else (timedelta(hours=1), timeout)
    flow.job(retry=RetryPolicy(max_attempts=2, base=timedelta(0)), timeout=registered)(Slow)
    async with flow.open(dsn) as app, app.worker():
        job_id = await app.jobs.schedule(Slow(label="s"), timeout=called)
        record = await ended(app, job_id)

    assert (record.state, record.reason, record.attempt) == (JobState.DEAD, "timeout", 2)
    assert journal.cancelled == ["s", "s"]


class InThread(Job):
    """Blocks a thread until the test says so."""

    label: str

    def execute(self, context: JobContext) -> None:
        threads = context.services.get(Threads)
        threads.entered.append(self.label)
        assert threads.leave.wait(10)
        threads.left.append(self.label)


class Threads:
    """What handlers in threads did."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.left: list[str] = []
        self.leave = threading.Event()


async def test_plain_function_runs_in_a_thread_and_keeps_its_slot(dsn: str, journal: Journal) -> None:
    """A timeout cannot stop a thread: until it ends, the slot is taken, and the loop stays free for others."""
    flow, threads = flow_of(journal), Threads()
    flow.job(timeout=timedelta(milliseconds=50), retry=RetryPolicy(max_attempts=1))(InThread)
    async with flow.open(dsn) as app, app.worker(WorkerSettings(concurrency=2)):
        app.services.register_value(Threads, threads)
        blocked = await app.jobs.schedule(InThread(label="blocked"))
        await until(lambda: threads.entered)
        await app.jobs.schedule(Hold(label="held"))
        await journal.until_started("held")  # in the second slot: the loop is free
        timed_out_at = SystemClock().monotonic() + 0.1
        await app.jobs.schedule(Note(label="waits"))
        await until(lambda: SystemClock().monotonic() > timed_out_at)
        assert (journal.labels(), threads.left) == (["held"], [])

        threads.leave.set()
        await journal.until_started("waits")  # in the thread's slot, since the other is still held
        assert (journal.finished, threads.left) == ([], ["blocked"])
        record = await ended(app, blocked)
        journal.gate.set()

    assert record.state is JobState.SUCCEEDED  # late, but done: doing it again would not undo it
