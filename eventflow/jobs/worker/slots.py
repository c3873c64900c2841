"""Where jobs run: a bounded number at once, the others in a short line."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextvars import copy_context
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from eventflow.clock import Clock, Wakeup
from eventflow.eventstore import Changes
from eventflow.failpoints import failpoint
from eventflow.ids import JobId
from eventflow.jobs.records import ClaimedJob, Outcome, Settlement
from eventflow.jobs.runner import JobRunner
from eventflow.jobs.worker.completion import Completions
from eventflow.jobs.worker.store_time import StoreTime

log = logging.getLogger("eventflow.worker")


TURN_SECONDS = 0.0003
"""How long a task runs jobs whose handlers do not wait before it lets everything else go on."""
MOST_STARTED = 16
"""Tasks that are started at once for the jobs in line."""


class RunningJob:
    """
    A job in a slot, or begun before it has one.

    Attributes:
        scope: Ends it; also what its task does with it afterwards, so nobody cancels once it has ended.
        ending: What its cancellation means.
        admission: Raised when it gets its slot; ``None``: it has one.
    """

    __slots__ = ("admission", "claim", "ending", "scope")

    def __init__(self, claim: ClaimedJob, scope: anyio.CancelScope, admission: Wakeup | None = None) -> None:
        self.claim = claim
        self.scope = scope
        self.ending = Outcome.RELEASED
        self.admission = admission

    def cancel(self, ending: Outcome) -> None:
        """Cancel the handler; if it ends by that, the claim ends so."""
        self.ending = ending
        self.scope.cancel()

    @property
    def waits(self) -> bool:
        """Whether it has no slot yet."""
        return self.admission is not None

    def admit(self) -> None:
        """It has a slot now."""
        if self.admission is not None:
            self.admission.set()
            self.admission = None


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

    While a job commits, the next in line is begun: it takes no slot until its handler runs, but may load what the
    handler needs. So one job's round trips take no time from the others.

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
        self._early: deque[RunningJob] = deque()
        self._committing = 0
        self._starting = 0
        self._to_start = 1
        self._pausing = 0
        self._latest: RunningJob | None = None
        self._tasks = 0
        self._idle = Wakeup(clock)
        self._context = copy_context()
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
        now = self._clock.monotonic()
        self._line.extend((claim, now) for claim in claims)
        self._start_more()
        if len(self._line) > self._seats.free:
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
        """Take all jobs out of the line; those that were begun early are released."""
        for job in self._early:
            job.cancel(Outcome.RELEASED)
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
            while self._line and self._line[0][1] <= until and len(self._line) > self._seats.free + self._starting:
                claim, _ = self._line.popleft()
                self._completions.add(Settlement(claim=claim, outcome=Outcome.RELEASED))
            if self._line and self._line[0][1] <= until:  # there is a slot for it, which it is about to take
                await self._clock.sleep(self._patience)

    async def wait_until_idle(self, seconds: float | None) -> bool:
        """Wait for all running jobs to end; false if that took longer (``None``: as long as it takes)."""
        with self._clock.deadline(seconds):
            while self._tasks:
                await self._idle.wait()
        return not self._tasks

    def cancel_all(self) -> None:
        """Cancel every handler; their claims are released."""
        for job in list(self._running.values()):
            job.cancel(Outcome.RELEASED)

    def leave(self) -> None:
        """Start nothing more, and cancel every handler: one that does not give way keeps its slot until it ends."""
        self._line.clear()
        self.cancel_all()

    def _start_more(self) -> None:
        """
        Start tasks for the line, unless some that were started have not begun.

        One after the other, each by the one before, until handlers wait; then more and more at once. Where none waits,
        one task runs all of them.
        """
        if self._starting:
            return
        while self._starting < min(self._to_start, len(self._line)) and self._seats.free > 0:
            self._seats.free -= 1
            self._starting += 1
            self._start(self._work)

    def _start(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
        """Start a task; it sees nothing that the job from which it is started has set in its context."""
        self._tasks += 1
        self._context.copy().run(self._seats.group.start_soon, work, *arguments)

    async def _work(self) -> None:
        """Hold a slot and run the jobs in line, until there is none or somebody else takes the slot."""
        self._starting -= 1
        self._to_start = 1 if self._pausing else min(MOST_STARTED, self._to_start * 2)
        try:
            if not self._pausing:
                await self._run_line()
        finally:
            self._leave_slot()

    async def _run_line(self) -> None:
        since = self._clock.monotonic()
        while self._may_go_on():
            with anyio.CancelScope() as scope:  # of many jobs, until one is cancelled
                while self._may_go_on() and not scope.cancel_called:
                    claim, _ = self._line.popleft()
                    self._start_more()
                    self._freed()
                    job = self._latest = RunningJob(claim, scope)
                    await self._run(job)
                    now = self._clock.monotonic()
                    if self._latest is not job:  # others have gone on meanwhile
                        since = now
                    elif now - since > TURN_SECONDS:
                        await self._pause()
                        since = self._clock.monotonic()

    def _may_go_on(self) -> bool:
        """Whether a task takes another job: not after one that has left something in its context."""
        return bool(self._line) and not self._early and copy_context() == self._context

    async def _pause(self) -> None:
        """Let everything else go on once."""
        self._pausing += 1
        try:
            await anyio.lowlevel.checkpoint()
        finally:
            self._pausing -= 1

    def _leave_slot(self) -> None:
        self._tasks -= 1
        if self._early:
            self._early.popleft().admit()
        else:
            self._seats.free += 1
            self._start_more()
            self._seats.freed()
        if not self._tasks:
            self._idle.set()

    def _begin_next(self) -> None:
        if self._line and not self._seats.free and len(self._early) < self._committing:
            claim, _ = self._line.popleft()
            job = RunningJob(claim, anyio.CancelScope(), Wakeup(self._clock))
            self._early.append(job)
            self._running[claim.id] = job  # not only when its task begins: it must be known without a gap
            self._start(self._work_early, job)
            self._freed()

    async def _work_early(self, job: RunningJob) -> None:
        """Run a job that has no slot yet, and with the slot it gets those in line."""
        try:
            with job.scope:
                await self._run(job)
            if not job.waits:
                await self._run_line()
        finally:
            if job.waits:
                self._early.remove(job)
                self._tasks -= 1
            else:
                self._leave_slot()

    async def _end(self, settlement: Settlement, changes: Changes, connection: Any) -> None:
        self._committing += 1
        self._begin_next()
        try:
            await self._completions.end(settlement, changes, connection)
        finally:
            self._committing -= 1

    async def _admit(self, job: RunningJob) -> None:
        """Wait for a slot; a job that waits too long is given back, as from the line."""
        if job.admission is not None and not await job.admission.wait(self._patience):
            job.cancel(Outcome.RELEASED)
            await anyio.lowlevel.checkpoint()

    async def _run(self, job: RunningJob) -> None:
        failpoint("job.starting")
        claim = job.claim
        self._running[claim.id] = job
        started_us = self._store_time.bound_us()
        try:
            settlement = await self._runner.run(
                claim,
                started_us=started_us,
                end=self._end,
                is_cancelled=_is_cancelled,
                admitted=None if job.admission is None else partial(self._admit, job),
            )
        except anyio.get_cancelled_exc_class():
            if job.scope.cancel_called:  # by us, and the handler gave way
                self._finish(job, _gave_way(job, started_us))
            raise
        finally:
            if self._running.get(claim.id) is job:  # somebody may have given it to this worker once more
                del self._running[claim.id]
        if job.scope.cancel_called and settlement.outcome in (Outcome.RETRY, Outcome.DEAD):
            settlement = _gave_way(job, started_us)  # with an error of its own, which the cancellation caused
        self._finish(job, settlement)

    def _finish(self, job: RunningJob, settlement: Settlement) -> None:
        failpoint("job.ran")
        if not settlement.is_written:
            self._completions.add(settlement)
        self._finished()


def _gave_way(job: RunningJob, started_us: int) -> Settlement:
    return Settlement(
        claim=job.claim,
        outcome=job.ending,
        started_us=None if job.waits else started_us,
        retention_days=1,
    )


def _is_cancelled() -> bool:
    """Whether a scope cancels this slot; if not, a handler cancelled its own task, which the slot survives."""
    if anyio.current_effective_deadline() == float("-inf"):
        return True
    task = asyncio.current_task()
    while task is not None and task.uncancel():
        pass
    return False
