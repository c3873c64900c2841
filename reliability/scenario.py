"""What a run consists of: who works, what is asked, and what fails when. A seed makes one."""

from random import Random

import msgspec

from eventflow.jobs.worker import WorkerSettings
from reliability.faults import Fault
from reliability.workload import RETRY

HORIZON_SECONDS = 4.0
"""Everything is asked and begins to fail within this."""
RECOVERY_SECONDS = 60.0
"""So long after the last fault everything must have come to its end."""
LATE_SECONDS = 1.0
"""What was under way when the network came back has arrived by then, though its caller has long given up."""
SETTINGS = WorkerSettings(heartbeat_interval=1.0, fence_after=2.0, lease_duration=3.0, grace_period=2.0)
"""Of workers; short, so that what goes by them shows within a run."""
ON_PROCESSES = (
    *(Fault.KILL, Fault.KILL, Fault.FREEZE, Fault.STOP, Fault.CUT, Fault.RESET),
    *(Fault.SLOW, Fault.REFUSE, Fault.LOSE, Fault.LOSE, Fault.DEAFEN),
)
ON_THE_STORE = (Fault.RESTART, Fault.SET_CLOCK)


class WorkerPlan(msgspec.Struct, frozen=True):
    """
    A worker's process.

    Attributes:
        rate: How much faster its monotonic clock runs.
        ahead: Seconds by which its wall clock is ahead.
        is_new: It knows all jobs.
        is_pooled: It reaches the server through a pooler; real processes only.
    """

    rate: float = 1.0
    ahead: float = 0.0
    is_new: bool = True
    concurrency: int = 4
    is_pooled: bool = False


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a producer does.

    Attributes:
        at: Seconds from the beginning.
        what: ``work``, ``news``, ``deposit`` (scheduled), ``publish`` (a deposit, at once), ``cancel`` or ``move`` (of
            the job with this number).
        delay: Seconds until it is due.
    """

    at: float
    producer: int
    number: int
    what: str
    delay: float = 0.0
    nap: float = 0.0
    block: float = 0.0
    failures: int = 0
    children: tuple[int, ...] = ()
    is_deadly: bool = False
    account: int = 0


class PlannedFault(msgspec.Struct, frozen=True):
    """
    What fails.

    Attributes:
        target: Number of the process, first workers, then producers.
        seconds: How long it lasts, or by how much the clock is set.
        amount: How many calls, or how many times slower.
        where: The point of the code, as failpoints are given.
    """

    at: float
    fault: Fault
    target: int
    seconds: float
    amount: int
    where: str = ""

    @property
    def over_at(self) -> float:
        """When it has passed."""
        return self.at + (0.0 if self.fault is Fault.SET_CLOCK else self.seconds)


class Scenario(msgspec.Struct, frozen=True):
    """A run, but for its latencies, which follow from its seed."""

    seed: int
    workers: tuple[WorkerPlan, ...]
    producers: int
    asks: tuple[Ask, ...]
    faults: tuple[PlannedFault, ...]

    @property
    def doomed(self) -> set[int]:
        """Numbers of jobs that may become dead letters."""
        return {ask.number for ask in self._work if ask.is_deadly or ask.failures >= RETRY.max_attempts}

    @property
    def cancelled(self) -> set[int]:
        """Numbers of jobs that somebody tries to cancel."""
        return {ask.number for ask in self.asks if ask.what == "cancel"}

    @property
    def children(self) -> dict[int, tuple[int, ...]]:
        """By the number of a job those that it leads to."""
        return {ask.number: ask.children for ask in self._work if ask.children}

    @property
    def accounts(self) -> list[int]:
        """Those that somebody may pay into."""
        return sorted({ask.account for ask in self.asks})

    @property
    def _work(self) -> list[Ask]:
        return [ask for ask in self.asks if ask.what == "work"]

    @property
    def sets_the_clock(self) -> bool:
        """The server's."""
        return any(fault.fault is Fault.SET_CLOCK for fault in self.faults)


def scenario(seed: int) -> Scenario:
    """The scenario of a seed."""
    rng = Random(seed)
    workers = tuple(worker_plan(rng, is_first=number == 0) for number in range(rng.choice((1, 2, 2, 3))))
    producers = rng.randint(1, 2)
    asks = asks_of(rng, producers)
    return Scenario(seed, workers, producers, asks, _faults(rng, len(workers), producers))


def worker_plan(rng: Random, *, is_first: bool) -> WorkerPlan:
    """A worker; the first knows all jobs."""
    return WorkerPlan(
        rate=1 + rng.uniform(-4e-4, 4e-4),
        ahead=rng.choice((0.0, 0.0, 7200.0, -7200.0)),
        is_new=is_first or rng.random() < 0.8,
        concurrency=rng.choice((1, 2, 4, 8)),
    )


def asks_of(rng: Random, producers: int) -> tuple[Ask, ...]:
    """A few calls of every kind, in their order."""
    asks: list[Ask] = []
    count = rng.randint(3, 11)
    bursts = [rng.uniform(0, HORIZON_SECONDS * 0.7) for _ in range(3)]
    deadly = rng.randrange(count) if rng.random() < 0.04 else -1
    for number in range(1, count + 1):
        at = rng.choice(bursts) if rng.random() < 0.5 else rng.uniform(0, HORIZON_SECONDS * 0.8)
        what = rng.choice(("work", "work", "work", "deposit", "deposit", "publish", "news"))
        asks.append(
            Ask(
                at=at,
                producer=rng.randrange(producers),
                number=number,
                what=what,
                delay=rng.choice((0.0, 0.0, 0.05, 0.4, 1.0, 2.5)),
                nap=rng.choice((0.0, 0.0, 0.01, 0.2, 1.5)),
                block=rng.uniform(0.1, 2.5) if rng.random() < 0.05 else 0.0,
                failures=rng.choice((0, 0, 0, 1, 2, 5)),
                children=tuple(1000 * number + child for child in range(rng.choice((0, 0, 0, 1, 2)))),
                is_deadly=number == deadly + 1 and what == "work",
                account=rng.randrange(2),
            )
        )
        if rng.random() < 0.15:
            later = at + rng.choice((0.0, 0.001, 0.1, 1.0))
            asks.append(
                Ask(
                    at=later,
                    producer=rng.randrange(producers),
                    number=number,
                    what=rng.choice(("cancel", "move")),
                    delay=rng.choice((0.0, 0.5, 1.5)),
                )
            )
    return tuple(sorted(asks, key=lambda ask: ask.at))


def _faults(rng: Random, workers: int, producers: int) -> tuple[PlannedFault, ...]:
    faults: list[PlannedFault] = []
    for _ in range(rng.randint(1, 6)):
        fault = rng.choice(ON_THE_STORE if rng.random() < 0.12 else ON_PROCESSES)
        targets = workers if fault is Fault.STOP or rng.random() < 0.7 else workers + producers
        seconds = rng.choice((0.01, 0.3, 1.0, 2.5, 4.0))
        if fault is Fault.SET_CLOCK:
            seconds = rng.choice((-3600.0, -1.0, -0.05, 0.05, 1.0, 3600.0))
        at = rng.uniform(0.02, HORIZON_SECONDS)
        faults.append(PlannedFault(at, fault, rng.randrange(targets), seconds, rng.choice((1, 1, 2, 5, 200))))
    return tuple(sorted(faults, key=lambda fault: fault.at))
