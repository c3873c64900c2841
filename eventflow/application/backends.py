"""Where an application keeps its jobs and events: in Postgres, in memory, or nowhere."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from eventflow.clock import Clock
from eventflow.eventstore import EventStore, InMemoryEventStore
from eventflow.jobs import (
    Commits,
    InMemoryCommits,
    InMemoryJobScheduler,
    InMemoryJobStore,
    InstantCommits,
    InstantJobScheduler,
    Interest,
    JobEncoder,
    JobId,
    JobRecord,
    JobRunner,
    JobScheduler,
    JobStore,
    NewJob,
)
from eventflow.jobs.worker import InProcessPresence, Presence
from eventflow.postgres import PostgresDatabase, Transactions
from eventflow.subscribers import CatchUpStore


class Backend:
    """
    Where the jobs and events of an open application are, and who works on them.

    Attributes:
        events: The event store.
        commits: Writes what commands and jobs change.
        scheduler: Makes the scheduler for a runner, and the names and versions that it can run.
        store: The job store; ``None``: jobs run where they are scheduled.
        presence: Makes what keeps a worker alive in the eyes of others, by its heartbeat's interval.
        transactions: Those that handlers and callers may write in; ``None``: there is no database.
        catch_ups: Remembers how far subscribers have been caught up; ``None``: there is no database.
        on_wake: Has a worker woken.
    """

    def __init__(
        self,
        events: EventStore,
        commits: Commits,
        scheduler: Callable[[JobRunner, Interest], JobScheduler],
        *,
        store: JobStore | None = None,
        presence: Callable[[float], Presence] | None = None,
        transactions: Transactions | None = None,
        catch_ups: CatchUpStore | None = None,
        on_wake: Callable[[Callable[[], None]], None] = lambda _: None,
    ) -> None:
        self.events = events
        self.commits = commits
        self.scheduler = scheduler
        self.store = store
        self.presence = presence
        self.transactions = transactions
        self.catch_ups = catch_ups
        self.on_wake = on_wake

    async def find_job(self, job_id: JobId) -> JobRecord | None:
        """Look a job up; one that ran where it was scheduled is not kept."""
        return None if self.store is None else await self.store.get(job_id)


@asynccontextmanager
async def open_backend(
    address: str, encoder: JobEncoder, *, clock: Clock, rng: Random, **database_options: Any
) -> AsyncGenerator[Backend]:
    """
    Open what is at an address, and close it at the end.

    Args:
        address: ``"memory:"``, ``"instant:"``, or of a database.
        encoder: Encodes jobs.
        database_options: See :meth:`PostgresDatabase.open`.
    """
    if address == "instant:":
        yield _instant(encoder, clock)
    elif address == "memory:":
        yield _in_memory(encoder, clock, rng)
    else:
        async with PostgresDatabase.open(address, clock=clock, rng=rng, **database_options) as database:
            yield Backend(
                database.events,
                database.commits,
                lambda _runner, _interest: database.scheduler(encoder),
                store=database.store,
                presence=database.presence,
                transactions=database.transactions,
                catch_ups=database.catch_ups,
                on_wake=database.on_wake,
            )


def _instant(encoder: JobEncoder, clock: Clock) -> Backend:
    events = InMemoryEventStore(clock)
    made: list[InstantJobScheduler] = []  # commits run jobs, whose runner commits

    async def run(jobs: Sequence[NewJob]) -> None:
        await made[0].run(jobs)

    def scheduler(runner: JobRunner, _: Interest) -> JobScheduler:
        made.append(InstantJobScheduler(encoder, runner, clock))
        return made[0]

    return Backend(events, InstantCommits(events, run), scheduler)


def _in_memory(encoder: JobEncoder, clock: Clock, rng: Random) -> Backend:
    store, events = InMemoryJobStore(clock), InMemoryEventStore(clock)
    commits = InMemoryCommits(store, events)
    return Backend(
        events,
        commits,
        lambda runner, interest: InMemoryJobScheduler(store, commits, encoder, runner, interest),
        store=store,
        presence=lambda interval: InProcessPresence(store, clock=clock, rng=rng, interval=interval),
        on_wake=store.on_wake,
    )
