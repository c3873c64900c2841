"""The rig's judge knows when a clock that is set has shown a time."""

import time
from math import inf
from pathlib import Path

import pytest

from reliability.rig.clocks import SettableClock

BEGAN = 1_800_000_000.0


def set_at(at: float, clock: SettableClock, ahead: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: BEGAN + at)
    clock.set(ahead)


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SettableClock:
    """Right at first; after 10 seconds an hour ahead; after 20 a bit less, so that it shows some times twice."""
    monkeypatch.setattr(time, "time", lambda: BEGAN)
    clock = SettableClock(tmp_path)
    set_at(10, clock, 3600.0, monkeypatch)
    set_at(20, clock, 3595.0, monkeypatch)
    return clock


@pytest.mark.parametrize(("shown", "at"), [(3.0, 3.0), (3612.0, 12.0), (3622.0, 27.0)])
def test_time_that_was_shown_once(clock: SettableClock, shown: float, at: float) -> None:
    assert clock.shown_at(BEGAN + shown, -inf) == BEGAN + at


@pytest.mark.parametrize(("logged_before", "at"), [(-inf, 17.0), (16.9, 17.0), (17.2, 17.0), (21.0, 22.0)])
def test_time_that_was_shown_twice_follows_what_was_logged_before(
    clock: SettableClock, logged_before: float, at: float
) -> None:
    assert clock.shown_at(BEGAN + 3617.0, BEGAN + logged_before) == BEGAN + at


def test_time_shown_while_it_was_being_set_is_the_nearest(clock: SettableClock) -> None:
    assert clock.shown_at(BEGAN + 10.001, -inf) == BEGAN + 10.001


def test_clock_goes_on_from_where_it_was_furthest(clock: SettableClock) -> None:
    assert (clock.ahead, clock.furthest_ahead) == (3595.0, 3600.0)
