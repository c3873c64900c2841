"""The notifier over a lane that answers as it is told."""

from typing import Any

import pytest

from eventflow import DatabaseUnavailableError, ManualClock
from eventflow.postgres.notifier import Notifier


class LaneFake:
    """Answers with what is left in its list; an exception is raised."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any] | Exception] = []
        self.sent: list[tuple[str, int | None]] = []

    async def fetch(self, query: str, payload: str, since_us: int | None) -> list[dict[str, Any]]:
        self.sent.append((payload, since_us))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return [answer]


class Rig:
    """A notifier, its clock and its lane."""

    def __init__(self) -> None:
        self.clock, self.lane = ManualClock(), LaneFake()
        self.notifier = Notifier(self.lane, "eventflow", self.clock)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] - it only fetches


async def test_rest_comes_some_time_after_the_next_may_follow() -> None:
    """Until then inserts leave it to the notifier, which sends one for many."""
    rig = Rig()
    assert rig.notifier.is_at_rest

    rig.notifier.tried(is_done=True, wait_us=40_000)
    rig.clock.advance(0.049)
    assert not rig.notifier.is_at_rest
    rig.clock.advance(0.0011)

    assert rig.notifier.is_at_rest


async def test_what_could_not_be_sent_is_sent_again_and_no_insert_tries_it_meanwhile() -> None:
    """A signal stays one."""
    rig = Rig()
    rig.lane.answers = [DatabaseUnavailableError("away"), {"is_done": True, "wait_us": 0, "now_us": 7}]
    rig.notifier.signal()

    with pytest.raises(DatabaseUnavailableError):
        await rig.notifier.notify_step()
    assert not rig.notifier.is_at_rest
    await rig.notifier.notify_step()

    assert rig.lane.sent == [("signal", None), ("signal", None)]
    rig.clock.advance(1.0)
    assert rig.notifier.is_at_rest


async def test_others_who_notify_later_have_done_it_for_this() -> None:
    """One who came too soon asks again, and says since when a notification will do."""
    rig = Rig()
    rig.lane.answers = [{"is_done": False, "wait_us": 0, "now_us": 7}, {"is_done": True, "wait_us": 0, "now_us": 9}]
    rig.notifier.mark()

    await rig.notifier.notify_step()

    assert rig.lane.sent == [("", None), ("", 7)]
