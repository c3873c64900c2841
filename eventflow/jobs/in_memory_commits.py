"""Commits in memory: changes and jobs together, as one step."""

from collections.abc import Sequence
from typing import Any

import msgspec

from eventflow.errors import ClaimLostError, StreamGrownError
from eventflow.eventstore import Changes, InMemoryEventStore
from eventflow.eventstore.in_memory import refuse_connection
from eventflow.ids import JobId
from eventflow.jobs.in_memory import InMemoryJobStore, Lines
from eventflow.jobs.records import Ending, NewJob


class InMemoryCommits:
    """Implements :class:`~eventflow.jobs.Commits` over the stores in memory; nothing gets in between."""

    def __init__(self, jobs: InMemoryJobStore, events: InMemoryEventStore) -> None:
        self._jobs = jobs
        self._events = events

    async def commit(
        self, changes: Changes, jobs: Sequence[NewJob] = (), *, ends: Ending | None = None, connection: Any = None
    ) -> None:
        refuse_connection(connection)
        claim = None if ends is None else ends.settlement.claim
        if ends is not None and claim is not None and not self._jobs.holds(ends.worker_id, claim):
            raise ClaimLostError(claim.id, claim.claim_no)
        step, job_id = changes.step, None if claim is None else claim.id
        self._events.check(changes, job_id=job_id)  # first of all: whoever is in conflict may tell of the same events
        if step is not None and step.following is None and self._events.version_of(step.stream) > step.stream_version:
            raise StreamGrownError
        added, moved = self._in_line(changes, jobs, job_id)
        self._jobs.check_new(added)
        for replaced in self._events.write(changes, job_id=job_id):
            self._jobs.drop_waiting(replaced)
        self._jobs.move_lines(moved)
        if ends is None:
            await self._jobs.insert(added)
        else:
            settlement = msgspec.structs.replace(ends.settlement, follow_ups=tuple(added))
            await self._jobs.settle(ends.worker_id, [settlement])

    def _in_line(self, changes: Changes, jobs: Sequence[NewJob], job_id: JobId | None) -> tuple[list[NewJob], Lines]:
        """The jobs to add, of those in line only the first; and where the lines stand then."""
        moved: Lines = {}
        step, left_out = changes.step, None
        if step is not None:
            standing = self._jobs.lines.get((step.subscriber, step.stream))
            if standing is not None and standing.id == job_id:
                moved[step.subscriber, step.stream] = next((job for job in jobs if job.id == step.following), None)
            else:
                left_out = step.following  # it stands elsewhere
        added: list[NewJob] = []
        for job in jobs:
            if job.line is not None and changes.stream is not None:
                line = (job.line.subscriber, changes.stream)
                if moved.get(line, self._jobs.lines.get(line)) is not None:
                    continue
                moved[line] = job
            if job.id != left_out:
                added.append(job)
        return added, moved
