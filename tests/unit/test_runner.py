"""One attempt of a job: how its claim ends, whatever happens inside."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventflow import (
    DomainError,
    EventFlow,
    JobContext,
    OnError,
    RetryPolicy,
)
from eventflow.jobs import Outcome
from eventflow.jobs.error_text import MAX_ERROR_CHARACTERS
from eventflow.retry import retry_delay
from tests.unit.bench import (
    Act,
    Behaviours,
    Bench,
    bench_of,
    do_nothing,
    error_of,
    raising,
)
from tests.unit.test_error_text import UnprintableError, VeryUnprintableError


async def test_success_takes_its_follow_ups_along() -> None:
    """A job that returns has succeeded; what it scheduled is part of the settlement, and not stored before."""

    async def fan_out(context: JobContext) -> None:
        context.schedule(Act(number=1))
        context.schedule(Act(number=2), delay=timedelta(days=1))

    bench = Bench(behaviour=fan_out)
    claim = bench.claim()

    settlement = await bench.runner.run(claim, started_us=7)

    assert (settlement.outcome, settlement.claim, settlement.started_us) == (Outcome.SUCCEEDED, claim, 7)
    assert [json.loads(job.payload)["number"] for job in settlement.follow_ups] == [1, 2]
    assert [json.loads(job.headers)["causation_id"] for job in settlement.follow_ups] == [claim.id] * 2
    assert await bench.store.find() == []


async def test_job_sees_its_attempt() -> None:
    """The context has the job's id, its attempt, its due time and its story."""
    seen: list[Any] = []

    async def look(context: JobContext) -> None:
        seen.extend([context.job_id, context.attempt, context.due_at, context.correlation_id])

    bench = Bench(behaviour=look)
    claim = bench.claim(attempt=3, due_us=1_000_000, headers='{"correlation_id":"story"}')

    await bench.runner.run(claim, started_us=0)

    assert seen == [claim.id, 3, datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), "story"]


async def test_failure_is_tried_again_after_a_delay() -> None:
    """An error means another attempt, after the policy's delay, with the error kept and no follow-ups."""

    async def fail(context: JobContext) -> None:
        context.schedule(Act())
        raise ValueError("broken")

    bench = Bench(behaviour=fail)

    settlement = await bench.run(attempt=2)

    assert settlement.outcome is Outcome.RETRY
    assert settlement.due is not None
    assert settlement.due.delay_us is not None
    assert 0 <= settlement.due.delay_us <= 4_000_000
    assert settlement.follow_ups == ()
    assert error_of(settlement)["type"] == "builtins.ValueError"
    assert error_of(settlement)["message"] == "broken"
    assert "in fail" in error_of(settlement)["traceback"]


async def test_last_attempt_goes_to_the_dead_letters() -> None:
    """A failure of the last attempt is final, with its reason and error."""
    bench = Bench(behaviour=raising(ValueError("broken")))

    settlement = await bench.run(attempt=10)

    assert (settlement.outcome, settlement.reason) == (Outcome.DEAD, "error")
    assert error_of(settlement)["message"] == "broken"


async def test_domain_error_goes_to_the_dead_letters_at_once() -> None:
    """A refusal by the domain is not repeated."""
    settlement = await Bench(behaviour=raising(DomainError("already paid"))).run(attempt=1)

    assert (settlement.outcome, settlement.reason) == (Outcome.DEAD, "error")
    assert error_of(settlement)["message"] == "already paid"


async def test_ignored_error_ends_the_job() -> None:
    """An error that the policy ignores ends the job, without its follow-ups, and stays in the history."""

    async def fail(context: JobContext) -> None:
        context.schedule(Act())
        raise OSError("gone already")

    bench = bench_of(RetryPolicy(on={OSError: OnError.IGNORE}), retention_days=9)
    bench.services.register_value(Behaviours, Behaviours(fail))

    settlement = await bench.run()

    assert (settlement.outcome, settlement.retention_days, settlement.follow_ups) == (Outcome.IGNORED, 9, ())
    assert error_of(settlement)["message"] == "gone already"


async def test_numbers_of_the_call_replace_the_registrations() -> None:
    """A policy given when scheduling decides; the registration's rules for exceptions still hold."""
    bench = bench_of(RetryPolicy(max_attempts=9, on={OSError: OnError.IGNORE}))
    stored = json.dumps(RetryPolicy(max_attempts=2).to_stored())

    bench.services.register_value(Behaviours, Behaviours(raising(ValueError())))
    second = await bench.run(retry=stored, attempt=2)
    first = await bench.run(retry=stored, attempt=1)
    bench.services.register_value(Behaviours, Behaviours(raising(OSError())))
    ignored = await bench.run(retry=stored, attempt=1)

    assert [s.outcome for s in (first, second, ignored)] == [Outcome.RETRY, Outcome.DEAD, Outcome.IGNORED]


@pytest.mark.parametrize(
    "stored",
    [
        "{}",
        "[1]",
        '"text"',
        "7",
        "nonsense",
        '{"max_attempts":0,"base_us":1,"cap_us":1}',
        '{"max_attempts":1,"base_us":1e30,"cap_us":1}',
        '{"max_attempts":1,"base_us":1,"cap_us":-1}',
        '{"max_attempts":null,"base_us":1,"cap_us":1}',
        '{"max_attempts":"x","base_us":1,"cap_us":1}',
        "[" * 20_000 + "]" * 20_000,
    ],
    ids=lambda stored: stored[:45],
)
async def test_stored_policy_that_makes_no_sense_is_the_registrations(stored: str) -> None:
    """Any client can write a row; a policy in it that cannot be read costs no more than itself."""
    settlement = await Bench(behaviour=raising(ValueError())).run(retry=stored, attempt=9)

    assert settlement.outcome is Outcome.RETRY


@pytest.mark.parametrize("attempt", [0, -1, 2**31])
async def test_attempt_that_makes_no_sense_ends_the_claim_all_the_same(attempt: int) -> None:
    """A count of attempts that no worker wrote does not keep a failure from being settled."""
    settlement = await Bench(behaviour=raising(ValueError())).run(attempt=attempt)

    assert settlement.outcome in (Outcome.RETRY, Outcome.DEAD)


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(1),
        KeyboardInterrupt(),
        GeneratorExit(),
        BaseExceptionGroup("several", [SystemExit(1), ValueError("x")]),
        ExceptionGroup("several", [ValueError("x"), OSError("y")]),
        StopAsyncIteration(),
        asyncio.CancelledError("my own"),
        TimeoutError(),
        MemoryError(),
        RecursionError(),
        UnprintableError(),
        VeryUnprintableError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_handler_raises_is_that_jobs_failure(error: BaseException) -> None:
    """No error of a handler, not even one that means to end the process, leaves the attempt."""
    settlement = await Bench(behaviour=raising(error)).run()

    assert settlement.outcome is Outcome.RETRY
    assert error_of(settlement)["type"].endswith(type(error).__qualname__)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"payload": "nonsense"}, "malformed"),
        ({"payload": '{"number":"7"}'}, r"$.number"),
        ({"payload": "[" * 20_000}, "array"),
        ({"payload": '{"x":' + "[" * 20_000 + "]" * 20_000 + "}"}, "recursion"),
        ({"payload": '{"number":' + "9" * 131_072 + "}"}, "$.number"),
        ({"name": "Nobody"}, "no job 'Nobody' v1"),
        ({"version": 2}, "no job 'Act' v2"),
        ({"name": "PublishCommand:Nobody"}, "no job 'PublishCommand:Nobody'"),
        ({"name": "PublishCommand:"}, "no job"),
        ({"due_us": 2**62}, "out of range"),
        ({"due_us": -(2**62)}, "out of range"),
        ({"headers": "nonsense"}, "malformed"),
        ({"headers": '{"correlation_id":7}'}, "correlation_id"),
        ({"headers": '{"x":' + "[" * 20_000 + "]" * 20_000 + "}"}, "recursion"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_row_that_cannot_be_read_goes_to_the_dead_letters(changes: dict[str, Any], said: str) -> None:
    """Whatever any client wrote into a row, the job becomes a dead letter with the reason; nothing is raised."""
    settlement = await Bench().run(**changes)

    assert (settlement.outcome, settlement.reason) == (Outcome.DEAD, "undecodable")
    assert said in error_of(settlement)["message"]


@pytest.mark.parametrize(
    "error",
    [
        AttributeError("no number, please"),
        SystemExit(3),
        asyncio.CancelledError(),
        UnprintableError(),
        VeryUnprintableError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_job_whose_own_check_raises_goes_to_the_dead_letters(error: BaseException) -> None:
    """A type's own code that fails on a stored value, however badly, is that job's matter alone."""

    class Fussy(Act):
        def __post_init__(self) -> None:
            if self.number:
                raise error

    flow = EventFlow("fussy")
    flow.job(Fussy)

    settlement = await Bench(flow).run(Fussy(), payload='{"number":1}')

    assert (settlement.outcome, settlement.reason) == (Outcome.DEAD, "undecodable")
    assert error_of(settlement)["message"] or isinstance(error, asyncio.CancelledError)


async def test_upgrader_whose_error_cannot_be_printed_makes_a_dead_letter() -> None:
    """What an upgrader raises concerns its job alone, even if it cannot say what it is."""

    class Old(Act):
        pass

    class New(Act):
        pass

    def fail(old: Old) -> New:
        raise UnprintableError

    fail.__annotations__.update(old=Old, **{"return": New})
    flow = EventFlow("upgrading")
    flow.add_jobs(Old, New)
    flow.upgrader(fail)

    settlement = await Bench(flow).run(Old())

    assert (settlement.outcome, settlement.reason) == (Outcome.DEAD, "undecodable")
    assert "fail failed: <its __repr__ failed: RuntimeError>" in error_of(settlement)["message"]


@pytest.mark.parametrize("headers", [None, "{}", '{"correlation_id":null}'])
async def test_row_without_a_story_begins_one(headers: str | None) -> None:
    """A row without a correlation id, as SQL may write it, is its own story."""
    seen: list[str] = []

    async def look(context: JobContext) -> None:
        seen.append(context.correlation_id)

    bench = Bench(behaviour=look)
    claim = bench.claim(headers=headers)

    await bench.runner.run(claim, started_us=0)

    assert seen == [claim.id]


async def test_services_are_closed_with_the_attempt() -> None:
    """What a factory opened for a job is closed after it, before its claim ends."""
    notes: list[str] = []

    async def connection() -> AsyncGenerator[int]:
        notes.append("opened")
        yield 7
        notes.append("closed")

    async def use(context: JobContext) -> None:
        notes.append(f"used {await context.services.aget(int)}")

    bench = Bench(behaviour=use)
    bench.services.register_factory(int, connection)

    await bench.run()

    assert notes == ["opened", "used 7", "closed"]


async def test_failing_job_is_logged_with_its_error(caplog: pytest.LogCaptureFixture) -> None:
    """A failed attempt is one warning with the job, the attempt and what follows."""
    bench = Bench(behaviour=raising(ValueError("broken")))

    with caplog.at_level(logging.WARNING, "eventflow.jobs"):
        await bench.run(attempt=4)

    [record] = caplog.records
    assert record.getMessage() == "job.failed"
    assert (vars(record)["job"], vars(record)["attempt"], vars(record)["decision"]) == ("Act", 4, "retry")
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "broken"


async def test_unwieldy_error_is_logged_without_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """An error that would take seconds to print, and fill the log, is one short line."""
    bench = Bench(behaviour=raising(ValueError("line\n" * 10_000)))

    with caplog.at_level(logging.WARNING, "eventflow.jobs"):
        await bench.run()

    [record] = caplog.records
    assert record.exc_info is None
    assert vars(record)["error"].startswith("line\nline")
    assert len(vars(record)["error"]) < MAX_ERROR_CHARACTERS + 100


async def test_error_whose_type_cannot_be_looked_up_ends_its_job_alone() -> None:
    """No rule of a retry policy can be found for it: a dead letter."""

    class Unhashable(type):
        __hash__ = None  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

        def __eq__(cls, other: object) -> bool:
            return cls is other

    settlement = await Bench(behaviour=raising(Unhashable("Odd", (Exception,), {})("odd"))).run()

    assert (settlement.outcome, settlement.reason) == (Outcome.DEAD, "error")
    assert error_of(settlement)["message"] == "odd"


async def test_retry_delay_is_the_policys() -> None:
    """The pause before the next attempt is drawn from the runner's own randomness, by the policy."""
    bench, again = Bench(behaviour=raising(ValueError())), Bench(behaviour=do_nothing)

    settlement = await bench.run(attempt=3)

    expected = retry_delay(3, base=timedelta(seconds=2), cap=timedelta(hours=1), rng=again.rng)
    assert settlement.due is not None
    assert settlement.due.delay_us == expected // timedelta(microseconds=1)
