"""The heap of claimed jobs that are not due yet."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest

from eventflow import DatabaseUnavailableError, ManualClock
from eventflow.jobs.records import ClaimedJob
from eventflow.jobs.worker.store_time import DRIFT, StoreTime
from eventflow.jobs.worker.timers import Timers
from eventflow.supervision import Supervisor
from tests.unit.bench import Bench, others_rest


class SlotsFake:
    """Takes note of the jobs it is given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def put(self, claims: list[ClaimedJob]) -> None:
        self.batches.append([claim.attempt for claim in claims])


class NotedClock(ManualClock):
    """Takes note of when it is asked for an exact sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.exact: list[float] = []

    async def sleep_exactly(self, seconds: float) -> None:
        self.exact.append(self.monotonic())
        await super().sleep_exactly(seconds)


class Rig:
    """Timers over fake slots; jobs are told apart by their attempt."""

    def __init__(self) -> None:
        self.bench = Bench()
        self.clock = self.bench.clock = NotedClock()
        self.slots = SlotsFake()
        self.fired = 0
        store_time = self.store_time = StoreTime(self.clock)
        store_time.sample(self.bench.now_us, asked_at=self.clock.monotonic())
        self.readings: list[float] = []
        self.answer_seconds = 0.0
        self.is_away = False
        self.timers = Timers(
            slots=self.slots,  # pyright: ignore[reportArgumentType] - it only uses put
            store_time=store_time,
            read_time=self._read_time,
            clock=self.clock,
            fired=self._count,
        )

    async def _read_time(self) -> int:
        self.readings.append(self.clock.monotonic())
        await self.clock.sleep(self.answer_seconds)
        if self.is_away:
            raise DatabaseUnavailableError("away")
        return self.bench.now_us

    def _count(self) -> None:
        self.fired += 1

    def claims(self, *seconds: float) -> list[ClaimedJob]:
        """Jobs that are ready after so many seconds."""
        now_us = self.bench.now_us
        return [self.bench.claim(attempt=n, ready_us=now_us + int(s * 1e6)) for n, s in enumerate(seconds)]


async def test_jobs_that_are_ready_start_at_once() -> None:
    """What is ready when it arrives goes to the slots in its order, the rest waits."""
    rig = Rig()

    rig.timers.add(rig.claims(-5, 10, 0))

    assert rig.slots.batches == [[0, 2]]
    assert len(rig.timers) == 1


async def test_jobs_fire_in_order_and_not_before_their_time() -> None:
    """Each job fires when the store's time has certainly reached it: a little late by this clock, never early."""
    rig = Rig()
    rig.timers.add(rig.claims(30, 10, 20))
    seen: list[list[list[int]]] = []

    async with anyio.create_task_group() as group:
        group.start_soon(Supervisor(rig.clock, rig.bench.rng).repeat, "timers", rig.timers.fire_step)
        for seconds in (10, 0.01, 9.99, 0.02, 9.98, 0.03):
            await others_rest()
            rig.clock.advance(seconds)
            await others_rest()
            seen.append(list(rig.slots.batches))
        group.cancel_scope.cancel()

    assert seen == [[], [[1]], [[1]], [[1], [2]], [[1], [2]], [[1], [2], [0]]]
    assert rig.fired == 3


async def test_job_a_moment_later_is_not_taken_along() -> None:
    """When one job fires, the next is left where it is though its time is half a millisecond away."""
    rig = Rig()
    rig.timers.add(rig.claims(10, 10.0005))
    first: list[list[int]] = []

    async with anyio.create_task_group() as group:
        group.start_soon(Supervisor(rig.clock, rig.bench.rng).repeat, "timers", rig.timers.fire_step)
        await others_rest()
        rig.clock.advance(10 / (1 - DRIFT) + 0.0001)
        await others_rest()
        first.extend(rig.slots.batches)
        rig.clock.advance(0.001)
        await others_rest()
        group.cancel_scope.cancel()

    assert (first, rig.slots.batches) == ([[0]], [[0], [1]])


async def test_earlier_job_added_later_fires_first() -> None:
    """A job that arrives while others wait shortens the waiting."""
    rig = Rig()

    async with anyio.create_task_group() as group:
        group.start_soon(Supervisor(rig.clock, rig.bench.rng).repeat, "timers", rig.timers.fire_step)
        rig.timers.add(rig.claims(100))
        await others_rest()
        rig.timers.add([msgspec.structs.replace(rig.claims(1)[0], attempt=9)])
        await others_rest()
        rig.clock.advance(1.001)
        await others_rest()
        group.cancel_scope.cancel()

    assert rig.slots.batches == [[9]]
    assert len(rig.timers) == 1


async def test_clock_set_forward_fires_what_it_made_due() -> None:
    """A job whose time lay an hour ahead does not sleep for that hour."""
    rig = Rig()
    rig.timers.add(rig.claims(3600))

    async with anyio.create_task_group() as group:
        group.start_soon(Supervisor(rig.clock, rig.bench.rng).repeat, "timers", rig.timers.fire_step)
        await others_rest()
        rig.store_time.sample(rig.bench.now_us + 3_600_000_000, asked_at=rig.clock.monotonic())
        rig.clock.advance(1)
        await others_rest()
        group.cancel_scope.cancel()

    assert rig.slots.batches == [[0]]


async def test_jobs_due_together_fire_together() -> None:
    """Ten thousand jobs of one instant are one hand-over."""
    rig = Rig()
    first = rig.claims(1)[0]
    rig.timers.add([msgspec.structs.replace(first, id=f"job-{n}") for n in range(10_000)])  # pyright: ignore[reportCallIssue]

    rig.clock.advance(1.001)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await rig.timers.fire_step()

    assert [len(batch) for batch in rig.slots.batches] == [10_000]


async def test_waiting_job_can_be_taken_out() -> None:
    """A job that waits is taken out once, by its id; the others stay in order."""
    rig = Rig()
    claims = rig.claims(1, 2, 3, 4)
    rig.timers.add(claims)

    assert rig.timers.take(claims[1].id) == claims[1]
    assert rig.timers.take(claims[1].id) is None
    assert set(rig.timers.ids()) == {claims[n].id for n in (0, 2, 3)}
    rig.clock.advance(3.01)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await rig.timers.fire_step()
    assert rig.slots.batches == [[0, 2]]
    assert rig.timers.take_all() == [claims[3]]
    assert len(rig.timers) == 0


@asynccontextmanager
async def working(rig: Rig) -> AsyncGenerator[None]:
    """Both services of the timers run."""
    async with anyio.create_task_group() as group:
        repeat = Supervisor(rig.clock, rig.bench.rng).repeat
        group.start_soon(repeat, "timers", rig.timers.fire_step)
        group.start_soon(repeat, "sharpen", rig.timers.sharpen_step)
        await others_rest()
        yield
        group.cancel_scope.cancel()


async def pass_time(rig: Rig, seconds: float) -> None:
    """In steps of a millisecond."""
    for _ in range(round(seconds * 1000)):
        rig.clock.advance(0.001)
        await others_rest()


async def test_time_is_asked_for_once_when_a_job_is_near() -> None:
    """What a slow answer told is made good 20 ms before the job, which then starts in time."""
    rig = Rig()
    rig.store_time.sample(rig.bench.now_us - 200_000, asked_at=rig.clock.monotonic() - 0.2)
    rig.timers.add(rig.claims(0.5))

    async with working(rig):
        await pass_time(rig, 0.52)

    assert rig.slots.batches == [[0]]
    [asked_at] = rig.readings
    assert asked_at <= 0.5


async def test_time_is_not_asked_for_if_it_is_known() -> None:
    """A quick answer was enough; nor is it asked for while no job waits."""
    rig = Rig()
    rig.timers.add(rig.claims(0.1))

    async with working(rig):
        await pass_time(rig, 1)

    assert rig.slots.batches == [[0]]
    assert rig.readings == []


async def test_a_distant_store_is_not_asked_again_and_again() -> None:
    """Its answers take five milliseconds, and the next would: little is gained by it, so a second passes first."""
    rig = Rig()
    rig.answer_seconds = 0.005
    rig.store_time.sample(rig.bench.now_us - 20_000, asked_at=rig.clock.monotonic() - 0.02)

    async with working(rig):
        for _ in range(15):
            rig.timers.add(rig.claims(0.03))
            await pass_time(rig, 0.1)

    assert len(rig.slots.batches) == 15
    [first, second] = rig.readings
    assert second - first >= 1.0


async def test_jobs_fire_though_the_time_cannot_be_asked_for() -> None:
    """A little later, by what is known."""
    rig = Rig()
    rig.is_away = True
    rig.store_time.sample(rig.bench.now_us - 20_000, asked_at=rig.clock.monotonic() - 0.02)
    rig.timers.add(rig.claims(0.1))

    async with working(rig):
        await pass_time(rig, 0.2)

    assert rig.slots.batches == [[0]]
    assert len(rig.readings) == 1


async def test_the_last_millisecond_is_not_slept() -> None:
    """Event loops are too coarse for it. Jobs that follow each other closely sleep all the same: it costs time."""
    rig = Rig()
    rig.timers.add(rig.claims(0.1, 0.104, 0.2))

    async with working(rig):
        await pass_time(rig, 0.3)

    assert rig.slots.batches == [[0], [1], [2]]
    assert rig.clock.exact == [pytest.approx(0.1, abs=0.0011), pytest.approx(0.2, abs=0.0011)]
