"""Stories: what followed from what, over jobs and events."""

import re
from collections.abc import Sequence
from datetime import datetime

import msgspec

from eventflow.clock import to_datetime
from eventflow.postgres.connection import Lanes
from eventflow.postgres.statements import statement

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """
    A job or an event in a story.

    Attributes:
        kind: ``"job"`` or ``"event"``.
        name: Stored name of the job or event.
        state: Of a job, as its record has it.
        at: When it was scheduled or recorded.
        causation_id: What caused it: a job, an event, or the source id of a command that was published directly.
        stream: Of an event: its aggregate's name and id, and its version there.
    """

    kind: str
    id: str
    name: str
    state: str | None
    at: datetime
    causation_id: str | None
    stream: str | None


class Stories:
    """Finds what belongs together."""

    def __init__(self, reading: Lanes, schema: str) -> None:
        self._reading = reading
        self._schema = schema

    async def find(self, link_id: str) -> Sequence[Link]:
        """
        Everything in the story of a job, an event, or a command's source id, oldest first; empty if nobody knows it.

        Reads all jobs.
        """
        found = _UUID.search(link_id)
        async with self._reading.connection() as connection:
            [row] = await connection.fetch(
                statement("select_story", self._schema), link_id, None if found is None else found[0]
            )
            if row["correlation_id"] is None:
                return []
            rows = await connection.fetch(statement("select_links", self._schema), row["correlation_id"])
        return [
            Link(
                kind=row["kind"],
                id=row["id"],
                name=row["name"],
                state=row["state"],
                at=to_datetime(row["at_us"]),
                causation_id=row["causation_id"],
                stream=row["stream"],
            )
            for row in rows
        ]
