"""Keeping services running, and the errors of task groups."""

import logging
from itertools import pairwise
from random import Random

import anyio
import pytest

from eventflow import LeaseLostError, ManualClock
from eventflow.supervision import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Supervisor, background_tasks
from tests.unit.bench import others_rest


class Service:
    """A step that fails as often as the test says, and then waits."""

    def __init__(self, clock: ManualClock, *errors: Exception) -> None:
        self.clock = clock
        self.errors = list(errors)
        self.called_at: list[float] = []
        self.again = anyio.Event()

    async def step(self) -> None:
        self.called_at.append(self.clock.monotonic())
        if self.errors:
            raise self.errors.pop(0)
        await self.again.wait()
        self.again = anyio.Event()


async def _supervise(service: Service, seconds: float, *, then: Exception | None = None) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(Supervisor(service.clock, Random(1)).repeat, "service", service.step)
        for _ in range(round(seconds / 0.01)):
            await others_rest()
            service.clock.advance(0.01)
        if then is not None:
            service.errors.append(then)
            service.again.set()
            await others_rest()
        group.cancel_scope.cancel()


async def test_failed_step_is_tried_again_with_growing_pauses() -> None:
    """After each failure the pause doubles up to its bound, with jitter; a service is never given up."""
    service = Service(ManualClock(), *[OSError("away")] * 12)

    await _supervise(service, 12)

    pauses = [after - before for before, after in pairwise(service.called_at)]
    assert len(pauses) == 12
    for n, pause in enumerate(pauses):
        longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**n)
        assert longest / 2 - 0.001 <= pause <= longest + 0.011
    assert len({round(pause, 2) for pause in pauses[6:]}) > 1


async def test_outage_is_logged_once_and_its_end_once(caplog: pytest.LogCaptureFixture) -> None:
    """However long an outage lasts it is one warning, and one line when it is over; the next is new."""
    service = Service(ManualClock(), *[OSError("away")] * 8)

    with caplog.at_level(logging.INFO, "eventflow.supervision"):
        await _supervise(service, 8)
        assert [record.getMessage() for record in caplog.records] == ["service.failed"]
        service.again.set()
        service.called_at.clear()
    warning = caplog.records[0]
    assert (vars(warning)["service"], vars(warning)["error"]) == ("service", "OSError('away')")


async def test_recovery_is_logged_and_the_next_outage_is_new(caplog: pytest.LogCaptureFixture) -> None:
    """A step that succeeds ends the outage; a failure after it is logged again."""
    clock = ManualClock()
    outcomes: list[Exception | None] = [OSError(), OSError(), None, None, ValueError(), None]
    done = anyio.Event()

    async def step() -> None:
        if not outcomes:
            done.set()
            await anyio.sleep_forever()
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome

    with caplog.at_level(logging.INFO, "eventflow.supervision"):
        async with anyio.create_task_group() as group:
            group.start_soon(Supervisor(clock, Random(1)).repeat, "service", step)
            while not done.is_set():
                await others_rest()
                clock.advance(1)
            group.cancel_scope.cancel()

    assert [record.getMessage() for record in caplog.records] == [
        "service.failed",
        "service.recovered",
        "service.failed",
        "service.recovered",
    ]
    assert [vars(r)["failures"] for r in caplog.records if r.getMessage() == "service.recovered"] == [2, 1]


async def test_fatal_error_ends_the_service() -> None:
    """An error named fatal is raised at once and not tried again."""
    service = Service(ManualClock(), LeaseLostError("gone"))

    with pytest.raises(LeaseLostError):
        await Supervisor(service.clock, Random(1), fatal=(LeaseLostError,)).repeat("service", service.step)

    assert len(service.called_at) == 1


async def test_exit_is_not_retried() -> None:
    """What means to end the process is no failure of a step."""

    async def step() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await Supervisor(ManualClock(), Random(1)).repeat("service", step)


async def test_lone_error_of_background_tasks_is_raised_as_itself() -> None:
    """One error, of the body or of a task, is not wrapped in a group; the other tasks are cancelled."""

    async def fail() -> None:
        raise ValueError("in a task")

    with pytest.raises(ValueError, match="in a task"):  # noqa: PT012 - the block is the subject
        async with background_tasks() as group:
            group.start_soon(anyio.sleep_forever)
            group.start_soon(fail)
    with pytest.raises(LookupError, match="in the body"):  # noqa: PT012 - as above
        async with background_tasks() as group:
            group.start_soon(anyio.sleep_forever)
            raise LookupError("in the body")


async def test_lone_error_keeps_its_cause() -> None:
    """The error's own cause stays."""
    with pytest.raises(ValueError, match="second") as caught:
        async with background_tasks():
            raise ValueError("second") from OSError("first")

    assert isinstance(caught.value.__cause__, OSError)


async def test_group_of_the_bodys_own_stays_what_it_is() -> None:
    """A group that the body raises is the body's error: it is not taken apart."""
    group = ExceptionGroup("mine", [ValueError("one"), ValueError("two")])

    with pytest.raises(ExceptionGroup) as caught:
        async with background_tasks():
            raise group

    assert caught.value is group


async def test_several_errors_stay_a_group() -> None:
    """Where several tasks fail, all their errors are shown."""

    async def fail() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise OSError("while cleaning up")

    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - as above
        async with background_tasks() as group:
            group.start_soon(fail)
            await others_rest()
            raise ValueError("in the body")

    assert {type(error) for error in caught.value.exceptions} == {OSError, ValueError}


async def test_cancellation_passes_background_tasks() -> None:
    """Cancelling from outside ends the tasks and raises nothing of its own."""
    with anyio.CancelScope() as scope:
        async with background_tasks() as group:
            group.start_soon(anyio.sleep_forever)
            scope.cancel()
            await anyio.sleep_forever()

    assert scope.cancelled_caught
