"""How far subscribers have been caught up, on Postgres."""

from collections.abc import Callable, Sequence
from typing import Any

import asyncpg

from eventflow.errors import DatabaseUnavailableError
from eventflow.jobs import NewJob
from eventflow.postgres.connection import Lanes
from eventflow.postgres.queues import Queues
from eventflow.postgres.rows import insert_arguments
from eventflow.postgres.statements import statement
from eventflow.subscribers import Place, Progress

MOST_TRIES = 5
"""Of a page that the server has refused because of a deadlock."""


class PostgresCatchUps:
    """
    Implements :class:`~eventflow.subscribers.CatchUpStore`.

    Args:
        committed: Called after jobs were added.
    """

    def __init__(self, lanes: Lanes, queues: Queues, schema: str, *, committed: Callable[[], None]) -> None:
        self._lanes = lanes
        self._queues = queues
        self._schema = schema
        self._committed = committed

    async def load(self, subscriber: str) -> Progress | None:
        async with self._lanes.connection() as connection:
            rows = await connection.fetch(statement("select_catch_up", self._schema), subscriber)
        return Progress(**rows[0]) if rows else None

    async def save(
        self, subscriber: str, progress: Progress, jobs: Sequence[NewJob], places: Sequence[Place] | None
    ) -> int:
        arguments = (
            subscriber,
            progress.cursor,
            progress.events_read,
            progress.is_finished,
            None if places is None else [place.stream.aggregate_name for place in places],
            None if places is None else [place.stream.aggregate_id for place in places],
            None if places is None else [place.stream_version for place in places],
            *insert_arguments(jobs, await self._queues.ids(jobs)),
        )
        made = await self._save(arguments)
        if made:
            self._committed()
        return made

    async def _save(self, arguments: Sequence[Any]) -> int:
        """Write a page; where somebody who appends to several of its streams waits for this too, once more."""
        for tries_left in range(MOST_TRIES - 1, -1, -1):
            try:
                async with self._lanes.connection() as connection:
                    [row] = await connection.fetch(statement("save_catch_up", self._schema), *arguments)
            except DatabaseUnavailableError as exc:
                if not tries_left or not isinstance(exc.__cause__, asyncpg.DeadlockDetectedError):
                    raise
            else:
                made: int = row["made"]
                return made
        raise AssertionError("every try returns or raises")
