"""Clocks: instants as integers, a time that tests advance, and flags to wait for."""

from datetime import UTC, datetime, timedelta

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventflow import ManualClock, SystemClock
from eventflow.clock import Wakeup, to_datetime, to_microseconds
from tests.unit.bench import others_rest


@given(st.datetimes(timezones=st.timezones()))
def test_instants_are_microseconds_and_back(instant: datetime) -> None:
    """An instant of any zone is a whole number of microseconds, and the same instant again."""
    try:
        utc = instant.astimezone(UTC)
    except OverflowError:
        return
    assert to_datetime(to_microseconds(utc)) == utc
    assert to_microseconds(instant) == to_microseconds(utc)


async def test_sleepers_wake_in_time_and_not_before() -> None:
    """A sleeper wakes when its whole time has been advanced, whatever the steps."""
    clock = ManualClock()
    woken: list[int] = []

    async def sleep(seconds: int) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    async with anyio.create_task_group() as group:
        for seconds in (3, 1, 2):
            group.start_soon(sleep, seconds)
        await others_rest()
        clock.advance(0.999999)
        await others_rest()
        assert woken == []
        clock.advance(0.000001)
        await others_rest()
        assert woken == [1]
        clock.advance(timedelta(seconds=5))

    assert sorted(woken) == [1, 2, 3]


@given(st.floats(1e-9, 1e6))
async def test_sleeper_that_woke_finds_its_time_gone(seconds: float) -> None:
    """Whoever is woken by an advance of just their time does not wait again for a rest too small to count."""
    clock = ManualClock()
    scope = clock.deadline(seconds)

    clock.advance(timedelta(microseconds=-(-seconds * 1_000_000 // 1)))

    assert scope.cancel_called
    assert clock.monotonic() >= seconds - 1e-9


@pytest.mark.parametrize("clock", [ManualClock(), SystemClock()], ids=["manual", "system"])
async def test_no_time_is_over_at_once(clock: ManualClock | SystemClock) -> None:
    """A deadline of nothing is over at the first wait; none at all never comes."""
    with clock.deadline(0) as over:
        await anyio.sleep_forever()
    with clock.deadline(None) as never:
        await anyio.lowlevel.checkpoint()

    assert over.cancelled_caught
    assert not never.cancelled_caught
    assert clock.now().tzinfo is UTC


class TestWakeup:
    """A flag that one task waits for."""

    async def test_raised_before_anybody_waits_is_not_lost(self) -> None:
        """A flag raised early is found, once, however often it was raised."""
        wakeup = Wakeup(ManualClock())
        wakeup.set()
        wakeup.set()

        assert await wakeup.wait()
        assert not await wakeup.wait(0)

    async def test_waiter_wakes_when_raised(self) -> None:
        """Who waits is woken by the flag."""
        wakeup = Wakeup(ManualClock())
        outcomes: list[bool] = []

        async def wait() -> None:
            outcomes.append(await wakeup.wait(10))

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await others_rest()
            wakeup.set()

        assert outcomes == [True]

    async def test_waiting_is_bounded(self) -> None:
        """Who gave a time is told that nobody raised it."""
        clock = ManualClock()
        wakeup = Wakeup(clock)
        outcomes: list[bool] = []

        async def wait() -> None:
            outcomes.append(await wakeup.wait(10))

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await others_rest()
            clock.advance(10)

        assert outcomes == [False]

    async def test_cancelled_waiter_loses_nothing(self) -> None:
        """A flag raised for a waiter that was cancelled is there for the next."""
        wakeup = Wakeup(ManualClock())

        with anyio.CancelScope() as scope:
            scope.cancel()
            await wakeup.wait()
        wakeup.set()

        assert await wakeup.wait(0)


async def test_exact_sleep_lets_others_go_on_and_is_not_short() -> None:
    """It does not sleep in the event loop, whose steps are coarser."""
    clock, turns = SystemClock(), 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(count)
        began_at = clock.monotonic()
        await clock.sleep_exactly(0.0015)
        assert clock.monotonic() - began_at >= 0.0015
        group.cancel_scope.cancel()

    assert turns > 1
