"""Attempts that run out of time or are cancelled, and those in threads, which can only be waited for."""

import asyncio
import threading
from datetime import timedelta
from typing import Any

import anyio
import pytest

from eventflow import (
    EventFlow,
    Job,
    JobContext,
    RetryPolicy,
)
from eventflow.jobs import Outcome, Settlement
from tests.unit.bench import (
    Behaviours,
    Bench,
    bench_of,
    error_of,
    forever,
    others_rest,
    raising,
)


async def test_attempt_beyond_its_timeout_is_cancelled_and_tried_again() -> None:
    """An attempt that takes longer than its timeout is cancelled; that is a failure like another."""
    cancelled = anyio.Event()

    async def hang(context: JobContext) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    bench = bench_of(RetryPolicy(max_attempts=2), timeout=timedelta(seconds=30))
    bench.services.register_value(Behaviours, Behaviours(hang))

    settlements = [await _after(bench, 30, attempt=1), await _after(bench, 30, attempt=2)]

    assert [s.outcome for s in settlements] == [Outcome.RETRY, Outcome.DEAD]
    assert settlements[1].reason == "timeout"
    assert "timeout of 30 s" in error_of(settlements[0])["message"]
    assert cancelled.is_set()


async def test_timeout_of_the_call_replaces_the_registrations() -> None:
    """A timeout given when scheduling holds instead of the registration's."""
    bench = bench_of(RetryPolicy(), timeout=timedelta(days=1))
    bench.services.register_value(Behaviours, Behaviours(forever))

    settlement = await _after(bench, 1.5, timeout_us=1_500_000)

    assert "timeout of 1.5 s" in error_of(settlement)["message"]


async def _after(bench: Bench, seconds: float, **changes: Any) -> Settlement:
    """Run a job and let so much time pass, not before and exactly once."""
    settlements: list[Settlement] = []

    async def run() -> None:
        settlements.append(await bench.run(**changes))

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await others_rest()
        await bench.advance(seconds - 0.001, step=seconds)
        assert settlements == []
        bench.clock.advance(0.001)
    return settlements[0]


async def test_handler_that_raises_when_timed_out_has_failed_by_its_own_error() -> None:
    """What a handler raises in answer to its timeout is the error that is kept."""

    async def hang(context: JobContext) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("while cleaning up")

    bench = bench_of(RetryPolicy(), timeout=timedelta(seconds=1))
    bench.services.register_value(Behaviours, Behaviours(hang))

    settlement = await _after(bench, 1)

    assert (settlement.outcome, error_of(settlement)["message"]) == (Outcome.RETRY, "while cleaning up")


async def test_cancellation_of_the_caller_passes() -> None:
    """When the attempt itself is cancelled, that is no failure: nothing is settled."""
    settlements: list[Settlement] = []
    bench = Bench(behaviour=forever)

    with anyio.CancelScope() as scope:
        scope.cancel()
        settlements.append(await bench.run())

    assert scope.cancelled_caught
    assert settlements == []


async def test_cancellation_by_asyncios_own_means_passes() -> None:
    """A timeout of asyncio around the call ends it, and is not taken for the handler's failure."""
    bench = Bench(behaviour=forever)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await bench.run()


async def test_cancellation_during_the_timeout_passes() -> None:
    """A caller that is cancelled while a timeout runs is not mistaken for the timeout."""
    bench = bench_of(RetryPolicy(), timeout=timedelta(seconds=1))
    bench.services.register_value(Behaviours, Behaviours(forever))

    with anyio.CancelScope() as scope:
        scope.cancel()
        await bench.run()

    assert scope.cancelled_caught


async def test_plain_job_runs_in_a_thread() -> None:
    """A job with a plain execute runs beside the event loop."""
    threads: list[int] = []

    class Plain(Job):
        def execute(self, context: JobContext) -> None:
            threads.append(threading.get_ident())

    flow = EventFlow("plain")
    flow.job(Plain)

    settlement = await Bench(flow).run(Plain())

    assert settlement.outcome is Outcome.SUCCEEDED
    assert threads != [threading.get_ident()]


async def test_thread_is_waited_for_when_cancelled() -> None:
    """A thread cannot be stopped: a cancelled attempt does not end before its thread has."""
    entered, leave, ended = anyio.Event(), threading.Event(), threading.Event()

    class Plain(Job):
        def execute(self, context: JobContext) -> None:
            anyio.from_thread.run_sync(entered.set)
            leave.wait(10)
            ended.set()

    flow = EventFlow("plain")
    flow.job(Plain)
    bench = Bench(flow)

    async def run() -> None:
        await bench.run(Plain())
        assert ended.is_set()

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await entered.wait()
        group.cancel_scope.cancel()
        leave.set()

    assert ended.is_set()


async def test_plain_job_that_hands_on_a_coroutine_is_awaited() -> None:
    """A job's execute may return an awaitable; its work is part of the attempt, and so is its failure."""

    class Handing(Job):
        def execute(self, context: JobContext) -> Any:
            return raising(ValueError("inside"))(context)

    flow = EventFlow("handing")
    flow.job(Handing)

    settlement = await Bench(flow).run(Handing())

    assert settlement.outcome is Outcome.RETRY
    assert error_of(settlement)["message"] == "inside"
