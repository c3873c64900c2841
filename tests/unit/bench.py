"""One of everything that runs jobs, without a database, on a clock that tests advance."""

import json
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import anyio.lowlevel
import msgspec

from eventflow import (
    Command,
    CommandBus,
    DistinctCommand,
    EventFlow,
    Identity,
    Job,
    JobContext,
    ManualClock,
    RetryPolicy,
    Services,
    StandaloneCommand,
    Worker,
    WorkerSettings,
)
from eventflow.aggregates import AggregateRepository
from eventflow.clock import to_microseconds
from eventflow.commands import CommandExecution
from eventflow.eventstore import InMemoryEventStore
from eventflow.ids import WorkerId
from eventflow.jobs import (
    ClaimedJob,
    InMemoryCommits,
    InMemoryJobStore,
    JobEncoder,
    JobRunner,
    Settlement,
    StoreJobScheduler,
    UnitsOfWork,
    WorkerRecord,
)
from eventflow.jobs.worker import InProcessPresence
from eventflow.messages import Message
from eventflow.supervision import background_tasks


class OrderId(Identity):
    """The identity most tests use."""


class ThingyId(Identity):
    """The identity of EventFlow's own test vectors."""


class PlaceOrder(Command[OrderId, int]):
    """A command with a result."""

    total_cents: int


class CancelOrder(Command[OrderId]):
    """A command without one."""


class RebuildIndex(StandaloneCommand[str]):
    """A command that concerns no aggregate."""

    shards: int = 1


class Ping(DistinctCommand[ThingyId]):
    """The distinct command of EventFlow's test vectors, with its exact ids."""

    exact_source_id = True
    number: int

    def source_id_components(self) -> Iterable[bytes]:
        return struct.pack("<i", self.number), self.aggregate_id.encode()


Behaviour = Callable[[JobContext], Awaitable[None]]


class Behaviours:
    """What `Act` jobs do in this test."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour


class Act(Job):
    """A job that does what the test says."""

    number: int = 0

    async def execute(self, context: JobContext) -> None:
        await (await context.services.aget(Behaviours)).behaviour(context)


async def do_nothing(context: JobContext) -> None:
    """Succeed."""


class HastyClock(ManualClock):
    """Nobody has to wait: it is later at once."""

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)


class Bench:
    """
    Encoder, in-memory store, bus, runner and scheduler of a flow.

    Args:
        flow: Its definitions; `Act` is added.
        behaviour: What `Act` does.
        store: Makes another job store than the in-memory one.
        events: Makes another event store.
    """

    def __init__(
        self,
        flow: EventFlow | None = None,
        *,
        behaviour: Behaviour = do_nothing,
        store: Callable[[ManualClock], InMemoryJobStore] = InMemoryJobStore,
        events: Callable[[ManualClock], InMemoryEventStore] = InMemoryEventStore,
    ) -> None:
        flow = flow or EventFlow("bench")
        whole = EventFlow("whole")
        whole.job(Act)
        whole.include(flow)  # later definitions win: a flow may register Act with options
        self.model = whole.check()
        self.clock = ManualClock()
        self.rng = Random(7)
        self.services = Services()
        self.services.register_value(Behaviours, Behaviours(behaviour))
        self.encoder = JobEncoder(self.model.definitions)
        self.store = store(self.clock)
        self.events = events(self.clock)
        self.commits = InMemoryCommits(self.store, self.events)
        self.units = UnitsOfWork(self.encoder, self.events, self.commits)
        repository = AggregateRepository(self.events, self.model.events, self.model.aggregates)
        execution = CommandExecution(
            repository, services=self.services, middleware=self.model.middleware, clock=self.clock, rng=self.rng
        )
        self.bus = CommandBus(self.model.handlers, execution, new_unit=self.units)
        self.services.register_value(CommandBus, self.bus)
        self.runner = JobRunner(
            self.model.definitions,
            invoker=self.model.invoker,
            services=self.services,
            units=self.units,
            clock=self.clock,
            rng=self.rng,
        )
        self.scheduler = StoreJobScheduler(self.store, self.encoder)
        self.interest = self.model.interest(None)

    @property
    def now_us(self) -> int:
        """The store's time."""
        return to_microseconds(self.clock.now())

    def claim(self, message: Message | None = None, **changes: Any) -> ClaimedJob:
        """A claimed job, due now, as a store would hand it out; *changes* replace its fields."""
        new = self.encoder.encode(message or Act())
        claimed = ClaimedJob(
            id=new.id,
            claim_no=1,
            attempt=1,
            crashes=0,
            due_us=self.now_us,
            ready_us=self.now_us,
            name=new.name,
            version=new.version,
            payload=new.payload.decode(),
            headers=new.headers.decode(),
            retry=None,
            timeout_us=None,
        )
        return msgspec.structs.replace(claimed, **changes)

    async def run(self, message: Message | None = None, **changes: Any) -> Settlement:
        """One attempt of a claimed job."""
        return await self.runner.run(self.claim(message, **changes), started_us=self.now_us)

    async def hold(self, count: int, worker_id: WorkerId) -> list[ClaimedJob]:
        """Insert so many jobs and let a worker claim them."""
        await self.scheduler.schedule_many([Act(number=n) for n in range(count)])
        await self.store.open_worker(WorkerRecord(worker_id, "host", 1, "0", None, 1))
        batch = await self.store.claim(worker_id, self.interest, ready=count, ahead=0, horizon_us=0)
        return list(batch.jobs)

    def worker(self, **settings: Any) -> Worker:
        """A worker over the store, not started."""
        chosen = WorkerSettings(**settings)
        return Worker(
            self.store,
            self.commits,
            InProcessPresence(self.store, clock=self.clock, rng=self.rng, interval=chosen.heartbeat_interval),
            self.runner,
            interest=self.interest,
            retentions=[1],
            settings=chosen,
            clock=self.clock,
            rng=self.rng,
        )

    @asynccontextmanager
    async def working(self, **settings: Any) -> AsyncGenerator[Worker]:
        """A worker that runs, and is stopped in good order at the end."""
        worker = self.worker(**settings)
        async with background_tasks() as group:
            await group.start(worker.run)
            await others_rest()
            yield worker
            worker.stop()

    async def advance(self, seconds: float, *, step: float = 0.25) -> None:
        """Let time pass in small steps, so that everything periodic keeps its rhythm."""
        while seconds > 1e-9:
            self.clock.advance(min(step, seconds))
            seconds -= step
            await others_rest()


def bench_of(policy: RetryPolicy, **options: Any) -> Bench:
    """A bench whose `Act` is registered with this policy."""
    flow = EventFlow("runner")
    flow.job(retry=policy, **options)(Act)
    return Bench(flow)


def error_of(settlement: Settlement) -> dict[str, str]:
    """The stored error."""
    assert settlement.error is not None
    return json.loads(settlement.error)


async def others_rest() -> None:
    """Let all other tasks run until they wait for time or for us; none of them waits for anything real."""
    for _ in range(60):  # each round runs every task that is ready once
        await anyio.lowlevel.checkpoint()


async def forever(context: JobContext) -> None:
    """Do not end unless cancelled."""
    await anyio.sleep_forever()


def raising(error: BaseException) -> Behaviour:
    """A behaviour that raises."""

    async def behave(context: JobContext) -> None:
        raise error

    return behave
