"""Slots on a bench, and what their jobs do."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio

from eventflow import EventFlow, JobContext
from eventflow.eventstore import Changes
from eventflow.ids import JobId
from eventflow.jobs.records import Outcome, Settlement
from eventflow.jobs.worker.slots import Seats, Slots
from eventflow.jobs.worker.store_time import StoreTime
from eventflow.supervision import Supervisor
from tests.unit.bench import Behaviour, Bench, do_nothing

PATIENCE = 0.05


async def _no_commit(changes: Changes) -> None:
    raise AssertionError("no job here commits by itself")


class CompletionsFake:
    """
    Keeps the settlements it is given.

    Args:
        commit: Takes the place of the store where a job commits by itself.
    """

    def __init__(self, commit: Callable[[Changes], Awaitable[None]]) -> None:
        self.settlements: list[Settlement] = []
        self._commit = commit

    def add(self, settlement: Settlement) -> None:
        self.settlements.append(settlement)

    async def end(self, settlement: Settlement, changes: Changes, connection: object) -> None:
        await self._commit(changes)


class Gate:
    """Jobs that wait in it until it opens, and a count of them."""

    def __init__(self) -> None:
        self.opened = anyio.Event()
        self.inside = 0
        self.most = 0
        self.order: list[JobId] = []

    async def behaviour(self, context: JobContext) -> None:
        self.order.append(context.job_id)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await self.opened.wait()
        finally:
            self.inside -= 1


class Rig:
    """Slots on a bench."""

    def __init__(
        self,
        behaviour: Behaviour = do_nothing,
        *,
        concurrency: int,
        flow: EventFlow | None = None,
        commit: Callable[[Changes], Awaitable[None]] = _no_commit,
        **stores: Any,
    ) -> None:
        self.bench = Bench(flow, behaviour=behaviour, **stores)
        self.completions = CompletionsFake(commit)
        self.freed = 0
        self.finished = 0
        self.seats = Seats(concurrency)
        self.slots = Slots(
            seats=self.seats,
            runner=self.bench.runner,
            completions=self.completions,  # pyright: ignore[reportArgumentType] - it only uses add and end
            store_time=StoreTime(self.bench.clock),
            clock=self.bench.clock,
            patience=PATIENCE,
            freed=self._freed,
            finished=self._finished,
        )

    def _freed(self) -> None:
        self.freed += 1

    def _finished(self) -> None:
        self.finished += 1

    @property
    def outcomes(self) -> list[Outcome]:
        return [settlement.outcome for settlement in self.completions.settlements]

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """Let it work."""
        async with anyio.create_task_group() as group:
            self.seats.group = group
            group.start_soon(
                Supervisor(self.bench.clock, self.bench.rng).repeat, "give_back", self.slots.give_back_step
            )
            yield
            group.cancel_scope.cancel()
