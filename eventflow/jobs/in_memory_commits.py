"""Commits in memory: changes and jobs together, as one step."""

from collections.abc import Sequence
from typing import Any

import msgspec

from eventflow.errors import ClaimLostError
from eventflow.eventstore import Changes, InMemoryEventStore, StreamId
from eventflow.eventstore.in_memory import refuse_connection
from eventflow.ids import JobId
from eventflow.jobs.in_memory import InMemoryJobStore
from eventflow.jobs.records import Ending, NewJob


class InMemoryCommits:
    """Implements :class:`~eventflow.jobs.Commits` over the stores in memory; nothing gets in between."""

    def __init__(self, jobs: InMemoryJobStore, events: InMemoryEventStore) -> None:
        self._jobs = jobs
        self._events = events
        self._lines: dict[tuple[str, StreamId], JobId] = {}

    async def commit(
        self, changes: Changes, jobs: Sequence[NewJob] = (), *, ends: Ending | None = None, connection: Any = None
    ) -> None:
        refuse_connection(connection)
        claim = None if ends is None else ends.settlement.claim
        if ends is not None and claim is not None and not self._jobs.holds(ends.worker_id, claim):
            raise ClaimLostError(claim.id, claim.claim_no)
        replaced = self._events.write(changes, job_id=None if claim is None else claim.id)
        for job_id in replaced:
            self._jobs.drop_waiting(job_id)
        self._step(changes)
        added = [job for job in jobs if job.line is None or self._is_first(job, job.line, changes)]
        if ends is None:
            await self._jobs.insert(added)
        else:
            settlement = msgspec.structs.replace(ends.settlement, follow_ups=tuple(added))
            await self._jobs.settle(ends.worker_id, [settlement])

    def _step(self, changes: Changes) -> None:
        if changes.step is None:
            return
        line = (changes.step.subscriber, changes.step.stream)
        if changes.step.following is None:
            self._lines.pop(line, None)
        else:
            self._lines[line] = changes.step.following

    def _is_first(self, job: NewJob, subscriber: str, changes: Changes) -> bool:
        """Whether the subscriber stands nowhere in the stream yet; then this is where."""
        if changes.stream is None:
            return True
        return self._lines.setdefault((subscriber, changes.stream), job.id) == job.id
