"""The states that jobs are in when a process dies, and how each of them ends all the same."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import msgspec

from eventflow import App, CancelOutcome, Job, JobId, RescheduleOutcome, WorkerSettings
from tests.crashes.application import (
    Brief,
    Doomed,
    Endless,
    Flaky,
    InThread,
    LongAtFirst,
    Parent,
    Plain,
    TooLong,
)
from tests.crashes.points import BEFORE_ITS_END, BEFORE_ITS_START, CLAIMING, IN_HANDS, OF_CLOSING, OF_WORKER
from tests.crashes.processes import ForkedProcess
from tests.crashes.scene import InconclusiveError, Scene, Seen

ALONE = "it ends alone, by one statement"
NOT_ANEW = "nobody is notified, since nothing waits anew"
FAR_AHEAD = WorkerSettings(claim_ahead=60.0)
"""Of a worker that takes everything into memory long before it is due."""


class End(msgspec.Struct, frozen=True):
    """
    How a job ends, wherever a process died.

    Attributes:
        outcomes: Of the attempts that ended by themselves without success.
        attempt: Attempts that ended by themselves: those of dead processes are given back.
        counts_crashes: Whether dying with it in hand was counted.
    """

    state: str = "succeeded"
    attempt: int = 1
    outcomes: tuple[str, ...] = ()
    reason: str | None = None
    counts_crashes: bool = True


ENDS: Mapping[str, End] = {
    "Doomed": End("dead", outcomes=("dead",), reason="error"),
    "Flaky": End(attempt=2, outcomes=("retry",)),
    "TooLong": End(attempt=2, outcomes=("retry",)),
}


class State:
    """
    A state of jobs in which a process dies; its docstring says which.

    Attributes:
        unreachable: Failpoints that no process passes in this state, and why.
        given_crashes: How many workers had died before, holding the job.
        settings: Of a worker that is embedded in the application; ``None``: one from the command line.
        options: For the command line.
        points: Where a worker is to die.
        is_rescued: Whether its rescuer is to die too.
        is_timed: It passes by itself; on a slow machine it may be over before it is seen.
    """

    points: tuple[str, ...] = OF_WORKER
    is_rescued = True
    is_timed = False
    unreachable: Mapping[str, str] = {}
    given_crashes = 0
    settings: WorkerSettings | None = None
    options: tuple[str, ...] = ()

    async def prepare(self, scene: Scene, app: App, point: str) -> list[JobId]:
        """Schedule, before there is a worker; returns the jobs that it is about."""
        raise NotImplementedError

    async def provoke(self, scene: Scene, worker: ForkedProcess, point: str) -> None:
        """Ask something of a worker that is at work, or that stands at the point."""

    def is_here(self, job: Seen, point: str) -> bool:
        """Whether a process that stands at this point is to die there."""
        if point == "claim.sending":
            return job.state == "waiting"
        if point in IN_HANDS:
            return job.state == "running"
        return job.claim_no > self.given_crashes and job.state != "running"

    def end(self, name: str, point: str, *, kills: int) -> End:
        """
        How a job ends.

        Args:
            name: Of the job.
            kills: Processes that were killed holding it.
        """
        return ENDS.get(name, End())


class Ready(State):
    """Ready, and claimed at once."""

    unreachable = {"settle.follow_ups": ALONE, "notify.sending": NOT_ANEW}
    job: type[Job] = Plain

    async def prepare(self, scene: Scene, app: App, point: str) -> list[JobId]:
        return [await app.jobs.schedule(self.job())]


class WithFollowUps(Ready):
    """The same with a follow-up job."""

    unreachable = {}
    job = Parent


class Threaded(Ready):
    """The same with a handler that runs in a thread."""

    job = InThread


class Failing(Ready):
    """In its first attempt, which fails; then waiting with backoff."""

    unreachable = {}
    job = Flaky


class TimingOut(Ready):
    """In its first attempt, which takes too long."""

    unreachable = {}
    job = TooLong


class Dying(Ready):
    """In its last attempt, which makes it a dead letter."""

    unreachable = {"notify.sending": NOT_ANEW}
    job = Doomed


class Retried(Failing):
    """In its second attempt."""

    unreachable = {"settle.follow_ups": f"the second attempt succeeds, and {ALONE}"}

    def is_here(self, job: Seen, point: str) -> bool:
        if point == "notify.sending":  # of the first one's end; nobody is notified of the second's
            return job.attempt >= 1
        if point == "settle.committed":
            return job.state == "succeeded"
        return job.attempt == (2 if point in IN_HANDS else 1) and super().is_here(job, point)


class DueSoon(State):
    """Claimed ahead of time, in the timers, while another one passes the point."""

    is_timed = True
    settings = FAR_AHEAD

    async def prepare(self, scene: Scene, app: App, point: str) -> list[JobId]:
        soon = await app.jobs.schedule(Plain(), delay=scene.soon)
        await app.jobs.schedule(Parent())
        return [soon]

    def is_here(self, job: Seen, point: str) -> bool:
        return not job.is_ready and job.state == ("waiting" if point == "claim.sending" else "running")


class BackingOff(State):
    """Waiting with backoff after a failed attempt, while another one passes the point."""

    is_timed = True

    async def prepare(self, scene: Scene, app: App, point: str) -> list[JobId]:
        waiting = await app.jobs.schedule(Flaky())
        await scene.fail(waiting, backoff=scene.soon)
        await app.jobs.schedule(Parent())
        return [waiting]

    def is_here(self, job: Seen, point: str) -> bool:
        return not job.is_ready and job.state == "waiting"


class InLine(State):
    """Claimed and due, in line behind full slots."""

    is_timed = True
    settings = WorkerSettings(concurrency=3, claim_ahead=60.0, queue_patience=0.3)

    async def prepare(self, scene: Scene, app: App, point: str) -> list[JobId]:
        due_at = datetime.now(UTC) + scene.soon
        await app.jobs.schedule_many([Parent(until=due_at + timedelta(seconds=0.1))])
        await app.jobs.schedule_many([Parent(until=due_at + timedelta(seconds=0.5))] * 2)
        return list(await app.jobs.schedule_many([Brief()] * 3, at=due_at))

    def is_here(self, job: Seen, point: str) -> bool:
        if point in CLAIMING:
            return super().is_here(job, point)
        return job.state == "running" and job.is_ready and not job.has_started


class Cancelled(State):
    """Cancelled on request while it runs."""

    unreachable = {"settle.follow_ups": ALONE, "notify.sending": NOT_ANEW}

    async def prepare(self, scene: Scene, app: App, point: str) -> list[JobId]:
        return [await app.jobs.schedule(Endless())]

    async def provoke(self, scene: Scene, worker: ForkedProcess, point: str) -> None:
        if point not in BEFORE_ITS_END:
            await scene.until_started()
        async with scene.app() as app:
            answer = await app.jobs.cancel(scene.subjects[0])
        assert answer is (CancelOutcome.CANCELLED if point == "claim.sending" else CancelOutcome.REQUESTED)

    def end(self, name: str, point: str, *, kills: int) -> End:
        if name != "Endless":
            return super().end(name, point, kills=kills)
        return End("cancelled", attempt=int(point != "claim.sending"), counts_crashes=False)


class Rescheduled(State):
    """Moved on request while a worker holds it in the timers."""

    is_timed = True
    settings = FAR_AHEAD

    async def prepare(self, scene: Scene, app: App, point: str) -> list[JobId]:
        moved = await app.jobs.schedule(Plain(), delay=scene.soon)
        if point in BEFORE_ITS_END and point not in CLAIMING:
            await app.jobs.schedule(Plain())  # passes the point; otherwise the moved job itself does
        return [moved]

    async def provoke(self, scene: Scene, worker: ForkedProcess, point: str) -> None:
        if point not in BEFORE_ITS_END:
            await scene.until_claimed()
        async with scene.app() as app:
            answer = await app.jobs.reschedule(scene.subjects[0], delay=scene.soon)
        if answer is RescheduleOutcome.NOT_FOUND:
            raise InconclusiveError("it was due before it could be moved")
        assert answer is (RescheduleOutcome.RESCHEDULED if point == "claim.sending" else RescheduleOutcome.REQUESTED)


class GivenBack(State):
    """Running in a worker that is stopped in good order, and dies meanwhile."""

    points = (*OF_WORKER, *OF_CLOSING)
    is_rescued = False  # in the middle of a handler it is the same as ready
    options = ("--grace-period=0",)

    async def prepare(self, scene: Scene, app: App, point: str) -> list[JobId]:
        # One that is to be long at first has to start in the worker that is stopped.
        return [await app.jobs.schedule(Plain() if point in BEFORE_ITS_START else LongAtFirst())]

    async def provoke(self, scene: Scene, worker: ForkedProcess, point: str) -> None:
        if point not in BEFORE_ITS_END:
            await scene.until_started()
        worker.terminate()


class ParkedUnknown(Ready):
    """Put aside by a worker that did not know it, and claimed by one that does."""

    async def prepare(self, scene: Scene, app: App, point: str) -> list[JobId]:
        subjects = await super().prepare(scene, app, point)
        await scene.park(subjects)
        return subjects


class Suspect(Ready):
    """Held by two workers when they died: claimed alone, it runs alone."""

    given_crashes = 2

    async def prepare(self, scene: Scene, app: App, point: str) -> list[JobId]:
        subjects = await super().prepare(scene, app, point)
        for _ in range(self.given_crashes):
            await scene.die_holding(subjects)
        return subjects


class LastStraw(Suspect):
    """Held by four workers when they died: the fifth makes it a dead letter."""

    given_crashes = 4
    job = Brief

    def end(self, name: str, point: str, *, kills: int) -> End:
        is_last = kills > 0 and name == "Brief"
        return End("dead", reason="worker_died") if is_last else super().end(name, point, kills=kills)


class AllAtOnce(State):
    """Many jobs in all these ways, whose ends are written together."""

    async def prepare(self, scene: Scene, app: App, point: str) -> list[JobId]:
        jobs = (Plain(), Parent(), Flaky(), Doomed(), TooLong(), InThread())
        return list(await app.jobs.schedule_many(jobs * 5))


STATES: Mapping[str, State] = {
    "ready": Ready(),
    "due-soon": DueSoon(),
    "in-line": InLine(),
    "retried": Retried(),
    "failing": Failing(),
    "backing-off": BackingOff(),
    "follow-ups": WithFollowUps(),
    "dead-letter": Dying(),
    "cancelled": Cancelled(),
    "rescheduled": Rescheduled(),
    "given-back": GivenBack(),
    "suspect": Suspect(),
    "last-straw": LastStraw(),
    "parked-unknown": ParkedUnknown(),
    "timing-out": TimingOut(),
    "in-thread": Threaded(),
    "all-at-once": AllAtOnce(),
}
"""By the name that a failing test shows."""
