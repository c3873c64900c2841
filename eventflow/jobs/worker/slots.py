"""Where jobs run: a bounded number at once, the others in a short line."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import anyio
from anyio.abc import TaskGroup

from eventflow.clock import Clock, Wakeup
from eventflow.failpoints import failpoint
from eventflow.ids import JobId
from eventflow.jobs.records import ClaimedJob, Outcome, Settlement
from eventflow.jobs.runner import JobRunner
from eventflow.jobs.worker.completion import Completions
from eventflow.jobs.worker.store_time import StoreTime

log = logging.getLogger("eventflow.worker")


class RunningJob:
    """A job in a slot; *ending* is what its cancellation means."""

    def __init__(self, claim: ClaimedJob) -> None:
        self.claim = claim
        self.scope = anyio.CancelScope()
        self.ending = Outcome.RELEASED

    def cancel(self, ending: Outcome) -> None:
        """Cancel the handler; if it ends by that, the claim ends so."""
        self.ending = ending
        self.scope.cancel()


class Seats:
    """
    The slots of a worker over all its incarnations: a handler that outlives its own still takes one.

    Args:
        number: How many there are.

    Attributes:
        group: Where handlers run; it waits for the last of them.
        free: How many are free now.
        freed: Called whenever one becomes free; set by the incarnation of the day.
    """

    def __init__(self, number: int) -> None:
        self.group: TaskGroup  # set by who runs the worker
        self.free = number
        self.freed: Callable[[], None] = lambda: None


class Slots:
    """
    Runs due jobs, each in one of a fixed number of slots.

    Args:
        seats: The slots.
        runner: Runs one job.
        completions: Takes what came of it.
        freed: Called whenever there is room again: a job has ended, and the next has left the line if there was one.
        finished: Called once for every job that left its slot.
        patience: Seconds a due job may stand in line before it goes back to the store, for others to take.
    """

    def __init__(
        self,
        *,
        seats: Seats,
        runner: JobRunner,
        completions: Completions,
        store_time: StoreTime,
        clock: Clock,
        patience: float,
        freed: Callable[[], None],
        finished: Callable[[], None],
    ) -> None:
        self._seats = seats
        self._runner = runner
        self._completions = completions
        self._store_time = store_time
        self._clock = clock
        self._patience = patience
        self._freed = freed
        self._finished = finished
        self._line: deque[tuple[ClaimedJob, float]] = deque()
        self._line_formed = Wakeup(clock)
        self._running: dict[JobId, RunningJob] = {}
        self._occupied = 0
        self._idle = Wakeup(clock)
        seats.freed = freed

    @property
    def free(self) -> int:
        """Slots without a job."""
        return self._seats.free

    @property
    def in_line(self) -> int:
        """Due jobs that wait for a slot."""
        return len(self._line)

    def ids(self) -> Iterator[JobId]:
        """The jobs here, running or in line."""
        yield from self._running
        yield from (claim.id for claim, _ in self._line)

    def put(self, claims: Iterable[ClaimedJob]) -> None:
        """Run these jobs, which are due, as slots allow; in this order."""
        for claim in claims:
            self._line.append((claim, self._clock.monotonic()))
            if self._seats.free > 0:
                self._seats.free -= 1
                self._occupied += 1
                self._seats.group.start_soon(self._occupy)
            else:
                self._line_formed.set()

    def find(self, job_id: JobId) -> RunningJob | None:
        """The job, if it runs here."""
        return self._running.get(job_id)

    def take(self, job_id: JobId) -> ClaimedJob | None:
        """Take a job out of the line."""
        for place in self._line:
            if place[0].id == job_id:
                self._line.remove(place)
                return place[0]
        return None

    def take_line(self) -> list[ClaimedJob]:
        """Take all jobs out of the line."""
        taken = [claim for claim, _ in self._line]
        self._line.clear()
        return taken

    async def give_back_step(self) -> None:
        """Return jobs that stood in line for too long: another worker may have a free slot."""
        await self._line_formed.wait()
        while self._line:
            oldest_since = self._line[0][1]
            await self._clock.sleep(max(0.0, oldest_since + self._patience - self._clock.monotonic()))
            until = self._clock.monotonic() - self._patience
            while self._line and self._line[0][1] <= until:
                claim, _ = self._line.popleft()
                self._completions.add(Settlement(claim=claim, outcome=Outcome.RELEASED))

    async def wait_until_idle(self, seconds: float | None) -> bool:
        """Wait for all running jobs to end; false if that took longer (``None``: as long as it takes)."""
        with self._clock.deadline(seconds):
            while self._occupied:
                await self._idle.wait()
        return not self._occupied

    def cancel_all(self) -> None:
        """Cancel every handler; their claims are released."""
        for job in list(self._running.values()):
            job.cancel(Outcome.RELEASED)

    def leave(self) -> None:
        """Start nothing more, and cancel every handler: one that does not give way keeps its slot until it ends."""
        self._line.clear()
        self.cancel_all()

    async def _occupy(self) -> None:
        try:
            while self._line:
                claim, _ = self._line.popleft()
                self._freed()
                await self._run(claim)
        finally:
            self._occupied -= 1
            self._seats.free += 1
            if not self._occupied:
                self._idle.set()
            self._seats.freed()

    async def _run(self, claim: ClaimedJob) -> None:
        failpoint("job.starting")
        job = self._running[claim.id] = RunningJob(claim)
        started_us = self._store_time.bound_us()
        settlement = None
        try:
            with job.scope:
                settlement = await self._runner.run(
                    claim, started_us=started_us, end=self._completions.end, is_cancelled=_is_cancelled
                )
        finally:
            if self._running.get(claim.id) is job:  # somebody may have given it to this worker once more
                del self._running[claim.id]
        failpoint("job.ran")
        if job.scope.cancel_called and settlement is not None and settlement.outcome in (Outcome.RETRY, Outcome.DEAD):
            settlement = None  # the handler gave way with an error of its own, which the cancellation caused
        if settlement is None:  # cancelled by us, and the handler gave way
            settlement = Settlement(claim=claim, outcome=job.ending, started_us=started_us, retention_days=1)
        if not settlement.is_written:
            self._completions.add(settlement)
        self._finished()


def _is_cancelled() -> bool:
    """Whether a scope cancels this slot; if not, a handler cancelled its own task, which the slot survives."""
    if anyio.current_effective_deadline() == float("-inf"):
        return True
    task = asyncio.current_task()
    while task is not None and task.uncancel():
        pass
    return False
