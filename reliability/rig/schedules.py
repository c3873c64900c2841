"""What a seed of the rig stands for."""

from random import Random

import msgspec

from reliability.failpoints import SWEPT
from reliability.faults import ON_THE_SERVER, Fault
from reliability.scenario import HORIZON_SECONDS, Ask, PlannedFault, Scenario, WorkerPlan, asks_of, worker_plan

PRODUCERS = 2
KINDS = 5
"""Of faults, at least, in each schedule."""
OF_ITS_OWN = (Fault.PROMOTE, Fault.FILL_DISK, Fault.SET_CLOCK)
"""Each needs other servers than the rest: a schedule has one of them, or none."""
OFTEN = (Fault.KILL, Fault.KILL, Fault.LOSE, Fault.FREEZE)
OF_PRODUCERS = tuple(point for point, passing in SWEPT.items() if {"producer", "publisher"} & {*passing})
OF_WORKERS = tuple(point for point, passing in SWEPT.items() if passing != ("producer",))
"""Points of the code that they pass."""
FIRST_OF_CROWD, FIRST_CHILD = 20_000, 300_000
ACCOUNTS = 20
"""Those of the crowd come after the two that all scenarios have."""


def schedule(seed: int) -> Scenario:
    """A scenario of real processes: hundreds of jobs, and faults of at least five kinds."""
    rng = Random(seed)
    workers = tuple(_worker(rng, number) for number in range(rng.choice((2, 2, 3, 4))))
    asks = (*asks_of(rng, PRODUCERS), *_crowd(rng))
    faults = _faults(rng, len(workers))
    return Scenario(seed, workers, PRODUCERS, tuple(sorted(asks, key=lambda ask: ask.at)), faults)


def _worker(rng: Random, number: int) -> WorkerPlan:
    """The first is not behind a pooler: notifications reach it."""
    plan = worker_plan(rng, is_first=number == 0)
    is_pooled = number > 0 and rng.random() < 0.25
    return msgspec.structs.replace(plan, is_pooled=is_pooled, concurrency=2 * plan.concurrency)


def _crowd(rng: Random) -> list[Ask]:
    """Many calls that ask for little."""
    return [
        Ask(
            at=rng.uniform(0, HORIZON_SECONDS),
            producer=rng.randrange(PRODUCERS),
            number=FIRST_OF_CROWD + number,
            what=rng.choice(("work", "work", "work", "deposit", "deposit", "publish", "news")),
            delay=rng.choice((0.0, 0.0, 0.05, 0.5, 1.5)),
            nap=rng.choice((0.0, 0.0, 0.0, 0.01, 0.05)),
            failures=rng.choice((0, 0, 0, 0, 0, 0, 0, 1, 2)),
            children=(FIRST_CHILD + number,) if rng.random() < 0.2 else (),
            account=2 + rng.randrange(ACCOUNTS),
        )
        for number in range(rng.randint(280, 420))
    ]


def _faults(rng: Random, workers: int) -> tuple[PlannedFault, ...]:
    special = rng.choice((None, *OF_ITS_OWN))
    kinds = [fault for fault in Fault if fault not in OF_ITS_OWN and fault is not Fault.BLOCK]
    chosen = rng.sample(kinds, KINDS) + rng.choices((*kinds, *OFTEN), k=rng.randint(0, 3))
    if special is not None:
        chosen.append(special)
    return tuple(sorted((_fault(rng, fault, workers) for fault in chosen), key=lambda fault: fault.at))


def _fault(rng: Random, fault: Fault, workers: int) -> PlannedFault:
    is_of_workers = fault in (Fault.STOP, Fault.DEAFEN) or rng.random() < 0.7
    target = rng.randrange(workers if is_of_workers else workers + PRODUCERS)
    seconds = rng.choice((0.3, 0.3, 1.0, 2.5) if fault in ON_THE_SERVER else (0.01, 0.3, 1.0, 2.5, 4.0))
    if fault is Fault.SET_CLOCK:
        seconds = rng.choice((-3600.0, -1.0, -0.05, 0.05, 1.0, 3600.0))
    planned = PlannedFault(rng.uniform(0.1, HORIZON_SECONDS), fault, target, seconds, rng.choice((1, 1, 2, 5, 200)))
    if fault is not Fault.CRASH:
        return planned
    points = OF_WORKERS if target < workers else OF_PRODUCERS
    where = f"{rng.choice(points)}=kill@{rng.choice((1, 2, 5, 20))}"
    return msgspec.structs.replace(planned, at=0.0, seconds=0.0, where=where)
