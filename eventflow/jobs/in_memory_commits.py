"""Commits in memory: changes and jobs together, as one step."""

from collections.abc import Sequence
from typing import Any

from eventflow.errors import ClaimLostError
from eventflow.eventstore import Changes, InMemoryEventStore
from eventflow.eventstore.in_memory import refuse_connection
from eventflow.jobs.in_memory import InMemoryJobStore
from eventflow.jobs.records import Ending, NewJob


class InMemoryCommits:
    """
    Implements :class:`~eventflow.jobs.Commits` over the stores in memory; nothing gets in between.

    The jobs of a claim that ends are its settlement's follow-ups.
    """

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
        replaced = self._events.write(changes, job_id=None if claim is None else claim.id)
        for job_id in replaced:
            self._jobs.drop_waiting(job_id)
        if ends is None:
            await self._jobs.insert(jobs)
        else:
            await self._jobs.settle(ends.worker_id, [ends.settlement])
