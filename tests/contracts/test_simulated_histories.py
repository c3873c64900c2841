"""What the simulator's store has answered, Postgres answers too: otherwise the simulator would prove something else."""

import time
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any, cast

import anyio.to_thread
import msgspec
import pytest

from eventflow.clock import to_microseconds
from eventflow.errors import EventFlowError
from eventflow.jobs import ClaimBatch, ClaimedJob, Ending, JobRecord, NewJob, Settlement
from eventflow.scheduling import Due
from reliability.scenario import scenario
from reliability.simulator.clocks import START
from reliability.simulator.run import play
from reliability.simulator.server import Call
from tests.support.event_stores import EventStores, event_stores
from tests.support.postgres import Database

SLOWER = 1000
"""A simulated millisecond is a second on Postgres, so that what the replay takes makes no difference."""
REPLAYED = {
    *("insert", "cancel", "reschedule", "open_worker", "beat", "claim", "claim_suspect", "park_unknown", "sweep"),
    *("claims", "settle", "rescue", "close_worker", "commit"),
}
SEEDS = range(100, 112)


class Replay:
    """Makes the simulator's calls once more, at their times."""

    def __init__(self, stores: EventStores) -> None:
        self._stores = stores
        self._jobs = stores.jobs.store
        self._at = 0.0
        self._began = time.monotonic()

    async def answers_of(self, call: Call) -> object:
        """What Postgres answers to the same call."""
        await self._wait_until(call.at)
        args = [self._translated(argument, call) for argument in call.args]
        kwargs = {name: self._translated(value, call) for name, value in call.kwargs.items()}
        if "horizon_us" in kwargs:
            kwargs["horizon_us"] *= SLOWER
        try:
            if call.name == "commit":
                return await self._stores.commits.commit(*args, **kwargs)
            if call.name == "beat":
                return await self._jobs.beat(args[0])
            return await getattr(self._jobs, call.name)(*args, **kwargs)
        except EventFlowError as exc:
            return exc

    async def records(self, answered: Sequence[JobRecord]) -> list[JobRecord | None]:
        """The same jobs, as they are on Postgres."""
        return [await self._jobs.get(record.id) for record in answered]

    async def _wait_until(self, at: float) -> None:
        passed = time.monotonic() - self._began
        missing = (at - self._at) * SLOWER - passed
        if missing > 0:
            await self._stores.jobs.advance(timedelta(seconds=missing))
        self._at, self._began = at, time.monotonic()

    def _translated(self, value: Any, call: Call) -> Any:  # Any: whatever a store takes
        """With the times of this replay."""
        if isinstance(value, Due):
            return self._due(value, call)
        if isinstance(value, NewJob):
            return msgspec.structs.replace(value, due=self._due(value.due, call))
        if isinstance(value, Ending):
            return Ending(value.worker_id, self._translated(value.settlement, call))
        if isinstance(value, Settlement):
            return msgspec.structs.replace(
                value,
                due=None if value.due is None else self._due(value.due, call),
                follow_ups=tuple(self._translated(job, call) for job in value.follow_ups),
            )
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            return [self._translated(item, call) for item in cast("Sequence[Any]", value)]
        return value

    def _due(self, due: Due, call: Call) -> Due:
        if due.delay_us is not None:
            return Due(delay_us=due.delay_us * SLOWER)
        if due.at_us is None:
            return due
        ahead_us = due.at_us - to_microseconds(START) - int(call.at * 1_000_000)
        return Due(at_us=time.time_ns() // 1000 + ahead_us * SLOWER)


def plain(outcome: object) -> object:
    """An answer, without what depends on the time of day."""
    if isinstance(outcome, ClaimBatch):
        return tuple(plain(claim) for claim in outcome.jobs)
    if isinstance(outcome, ClaimedJob):
        return (outcome.id, outcome.claim_no, outcome.attempt, outcome.crashes, outcome.name, outcome.payload)
    if isinstance(outcome, list):
        return {plain(item) for item in cast("list[object]", outcome)}
    if isinstance(outcome, Exception):
        return type(outcome).__name__
    if isinstance(outcome, JobRecord):
        return (outcome.id, outcome.state, outcome.attempt, outcome.claim_no, outcome.crashes, outcome.parked)
    return outcome


@pytest.mark.parametrize("seed", SEEDS)
async def test_postgres_answers_as_the_simulated_store_does(database: Database, seed: int) -> None:
    """Every call of a run under faults, and every job at its end."""
    played = scenario(seed)
    played = msgspec.structs.replace(
        played, faults=tuple(fault for fault in played.faults if fault.fault.value != "set_clock")
    )
    result = await anyio.to_thread.run_sync(partial(play, played, with_calls=True))  # it has a loop of its own
    async with event_stores(database) as stores:
        replay = Replay(stores)
        for number, call in enumerate(call for call in result.calls if call.name in REPLAYED):
            answer = plain(await replay.answers_of(call))
            assert answer == plain(call.outcome), (number, call)
        records = await replay.records(result.records)
        assert [plain(record) for record in records] == [plain(record) for record in result.records]
