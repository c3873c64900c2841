"""The ways to schedule in which a producer dies."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from eventflow import App
from eventflow.failpoints import failpoint
from tests.crashes.application import Plain, flow
from tests.crashes.points import MID_TRANSACTION, OF_PRODUCER

COPIED = 300
"""So many jobs go by COPY."""
WRITE = "INSERT INTO written (pid) VALUES ($1)"


async def one() -> None:
    await _as_producer(lambda app: app.jobs.schedule(Plain()))


async def some() -> None:
    await _as_producer(lambda app: app.jobs.schedule_many([Plain()] * 5))


async def many() -> None:
    await _as_producer(lambda app: app.jobs.schedule_many([Plain()] * COPIED))


async def in_transaction() -> None:
    """Together with a row of its own, which exists exactly if the jobs do."""

    async def schedule(app: App) -> None:
        async with app.transaction() as connection:
            await connection.execute(WRITE, os.getpid())
            await app.jobs.schedule(Plain(), connection=connection)
            await app.jobs.schedule_many([Plain()] * COPIED, connection=connection)
            failpoint(MID_TRANSACTION)

    await _as_producer(schedule)


async def _as_producer(schedule: Callable[[App], Awaitable[object]]) -> None:
    async with flow.open() as app:
        await schedule(app)
        await asyncio.Event().wait()  # until it is killed: what follows the commit goes on behind the call


class Way(msgspec.Struct, frozen=True):
    """
    A way to schedule.

    Attributes:
        jobs: How many it schedules.
        writes: Whether it writes more than jobs.
        points: Where its process is to die.
        unreachable: Those of them that it does not pass, and why.
    """

    schedule: Callable[[], Awaitable[None]]
    jobs: int
    writes: bool = False
    points: tuple[str, ...] = OF_PRODUCER
    unreachable: Mapping[str, str] = {}


OWN_COMMIT = "the transaction is the caller's: the store neither begins nor commits it"
IN_ONE_TRIP = "a lone insert sends its notification itself"
WAYS: Mapping[str, Way] = {
    "schedule": Way(one, 1, unreachable={"notify.sending": IN_ONE_TRIP}),
    "schedule-many": Way(some, 5, unreachable={"notify.sending": IN_ONE_TRIP}),
    "copy": Way(many, COPIED),
    "transaction": Way(
        in_transaction,
        1 + COPIED,
        writes=True,
        points=(MID_TRANSACTION, *OF_PRODUCER),
        unreachable={"insert.sending": OWN_COMMIT, "insert.committed": OWN_COMMIT},
    ),
}
"""By the name that a failing test shows."""
