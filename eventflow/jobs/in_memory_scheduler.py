"""The scheduler over the job store in memory."""

from typing import Any

from eventflow.eventstore import Changes
from eventflow.ids import WorkerId
from eventflow.jobs.encoder import JobEncoder
from eventflow.jobs.in_memory import InMemoryJobStore
from eventflow.jobs.records import Ending, Interest, Settlement, WorkerRecord
from eventflow.jobs.runner import JobRunner
from eventflow.jobs.scheduler import StoreJobScheduler
from eventflow.jobs.unit_of_work import Commits


class InMemoryJobScheduler(StoreJobScheduler):
    """
    Honours time without a database: jobs wait in memory until a clock, which tests may advance, says so.

    A worker over the same store runs them; :meth:`run_due` runs them here and now.
    """

    def __init__(
        self, store: InMemoryJobStore, commits: Commits, encoder: JobEncoder, runner: JobRunner, interest: Interest
    ) -> None:
        super().__init__(store, encoder)
        self._memory = store
        self._commits = commits
        self._runner = runner
        self._interest = interest

    async def run_due(self) -> int:
        """Run every job that is due, and those they lead to; returns the number of attempts made."""
        me, made = WorkerId.new(), 0

        async def end(settlement: Settlement, changes: Changes, connection: Any) -> None:
            await self._commits.commit(
                changes, settlement.follow_ups, ends=Ending(me, settlement), connection=connection
            )

        await self._memory.open_worker(WorkerRecord(me, "memory", 0, "", None, 1))
        try:
            while (batch := await self._memory.claim(me, self._interest, ready=1, ahead=0, horizon_us=0)).jobs:
                settlement = await self._runner.run(batch.jobs[0], started_us=batch.now_us, end=end)
                if not settlement.is_written:
                    await self._memory.settle(me, [settlement])
                made += 1
        finally:
            await self._memory.close_worker(me)
        return made
