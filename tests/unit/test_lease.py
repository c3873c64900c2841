"""The lease: beats, and giving up in time."""

import anyio
import pytest

from eventflow import LeaseLostError, ManualClock, WorkerError, WorkerSettings
from eventflow.jobs.worker.lease import Heartbeat, LeaseGuard
from tests.unit.bench import others_rest


class Beats:
    """Answers beats as the test says."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.seconds = 0.0
        self.open = True

    async def __call__(self) -> bool:
        self.clock.advance(self.seconds)
        return self.open


async def test_beat_counts_from_when_it_was_sent() -> None:
    """An answer that took long stretches no lease."""
    clock = ManualClock()
    beats = Beats(clock)
    heartbeat = Heartbeat(beats, clock=clock, interval=5)
    clock.advance(5)
    beats.seconds = 4

    await heartbeat.beat_now()

    assert heartbeat.beaten_at == 5
    assert not heartbeat.closed


async def test_refused_beat_closes_the_lease() -> None:
    """A beat that finds the worker closed is no beat."""
    clock = ManualClock()
    beats = Beats(clock)
    beats.open = False
    heartbeat = Heartbeat(beats, clock=clock, interval=5)
    clock.advance(5)

    await heartbeat.beat_now()

    assert heartbeat.closed
    assert heartbeat.beaten_at == 0


async def test_guard_gives_up_before_anybody_else_may_take_the_jobs() -> None:
    """Without a successful beat for fence_after seconds the worker ends itself, at that time and not before."""
    clock = ManualClock()
    heartbeat = Heartbeat(Beats(clock), clock=clock, interval=5)
    guard = LeaseGuard(heartbeat, clock=clock, fence_after=10)
    ended: list[float] = []

    async def watch() -> None:
        try:
            while True:
                await guard.guard_step()
        except LeaseLostError:
            ended.append(clock.monotonic())

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        for _ in range(300):
            await others_rest()
            if clock.monotonic() == 5:
                await heartbeat.beat_now()
            clock.advance(0.0625)

    assert ended == [15]


async def test_guard_sees_a_closed_lease_at_its_next_look() -> None:
    """A worker that somebody closed ends within a quarter of a second."""
    clock = ManualClock()
    heartbeat = Heartbeat(Beats(clock), clock=clock, interval=5)
    guard = LeaseGuard(heartbeat, clock=clock, fence_after=10)

    async def watch() -> None:
        with pytest.raises(LeaseLostError, match="taken"):  # noqa: PT012 - one of the looks raises
            while True:
                await guard.guard_step()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await others_rest()
        heartbeat.closed = True
        clock.advance(0.25)

    assert clock.monotonic() == 0.25


@pytest.mark.parametrize(
    "settings",
    [
        {"concurrency": 0},
        {"heartbeat_interval": 0.0},
        {"heartbeat_interval": 10.0},
        {"fence_after": 15.0},
        {"lease_duration": 9.0},
        {"grace_period": -1.0},
        {"tick_interval": 0.0},
        {"poll_interval": 0.0},
    ],
    ids=repr,
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, float]) -> None:
    """Settings with which a worker could lose its lease while it works are an error at once."""
    with pytest.raises(WorkerError):
        WorkerSettings(**settings)  # pyright: ignore[reportArgumentType] - one of them is an int
