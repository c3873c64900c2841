"""The numbers of queues, which stand in every job and claim."""

from collections.abc import Iterable, Mapping

from eventflow.jobs import NewJob
from eventflow.postgres.connection import Lane
from eventflow.postgres.statements import statement


class Queues:
    """Knows queues by name; each is looked up once, and made on first use."""

    def __init__(self, lane: Lane, schema: str) -> None:
        self._lane = lane
        self._schema = schema
        self._ids: dict[str, int] = {}

    async def ids(self, jobs: Iterable[NewJob]) -> Mapping[str, int]:
        """The numbers of the queues of these jobs, among others."""
        for queue in {job.queue for job in jobs} - self._ids.keys():
            [row] = await self._lane.fetch(statement("ensure_queue", self._schema), queue)
            self._ids[queue] = row["id"]
        return self._ids
