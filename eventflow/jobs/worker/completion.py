"""Ends claims in the store, many in one commit."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

from eventflow.clock import Clock, Wakeup
from eventflow.errors import CommitUnknownError, DatabaseError, DatabaseUnavailableError, ValueRefusedError
from eventflow.eventstore import Changes
from eventflow.failpoints import failpoint
from eventflow.ids import JobId, WorkerId
from eventflow.jobs.records import Ending, Outcome, Settlement
from eventflow.jobs.store import JobStore
from eventflow.jobs.unit_of_work import Commits
from eventflow.supervision import pause_after

log = logging.getLogger("eventflow.worker")


class Completions:
    """
    Collects what came of jobs and writes it in batches; nothing is forgotten until the store has answered.

    Args:
        commits: Ends claims one by one, with what their jobs changed.
        linger: Seconds to wait for company while busy; a lone settlement goes at once.
        batch: Most settlements in one commit.
        written: Called after each commit.
    """

    def __init__(
        self,
        store: JobStore,
        worker_id: WorkerId,
        *,
        commits: Commits,
        clock: Clock,
        rng: Random,
        linger: float,
        batch: int,
        written: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._worker_id = worker_id
        self._commits = commits
        self._clock = clock
        self._rng = rng
        self._linger = linger
        self._batch = batch
        self._written = written
        self._queue: deque[Settlement] = deque()
        self._sending: Sequence[Settlement] = ()
        self._uncertain: set[JobId] = set()
        self._arrived = Wakeup(clock)
        self._emptied = Wakeup(clock)
        self._busy = False

    def add(self, settlement: Settlement) -> None:
        """End this claim soon."""
        self._queue.append(settlement)
        self._arrived.set()

    @property
    def backlog(self) -> int:
        """Ended claims that wait to be written."""
        return len(self._queue)

    def ids(self) -> Iterator[JobId]:
        """Jobs whose end is not written yet."""
        yield from (settlement.claim.id for settlement in self._queue)
        yield from (settlement.claim.id for settlement in self._sending)

    async def end(self, settlement: Settlement, changes: Changes, connection: Any) -> None:
        """
        End a claim in success with what its job changed, now: the runner's way to commit.

        Without a connection it is repeated until the store has answered; the fence makes that harmless.

        Raises:
            ClaimLostError: the claim was not held any more, or its first try that was not answered has ended it.
        """
        ending, failures = Ending(self._worker_id, settlement), 0
        while True:
            try:
                await self._commits.commit(changes, settlement.follow_ups, ends=ending, connection=connection)
            except (DatabaseUnavailableError, CommitUnknownError) as exc:
                if connection is not None:
                    raise
                log.warning("commit.failed", extra={"job_id": settlement.claim.id, "error": str(exc)})
            else:
                return
            failures += 1
            await self._clock.sleep(pause_after(failures, self._rng))

    async def wait_until_empty(self, seconds: float) -> bool:
        """Wait until everything is written; false if that took longer."""
        with self._clock.deadline(seconds):
            while self._queue or self._sending:
                await self._emptied.wait()
        return not self._queue and not self._sending

    async def store_answers(self, within: float) -> bool:
        """Whether the store answers a question in so many seconds; it is no use to wait for one that does not."""
        with self._clock.deadline(within):
            try:
                await self._store.claims(self._worker_id, [*self.ids()])
            except DatabaseError:
                return False
            return True
        return False

    async def settle_step(self) -> None:
        """Write one batch."""
        if not self._queue:
            self._emptied.set()
            await self._arrived.wait()
            if self._busy and len(self._queue) < self._batch:
                await self._clock.sleep(self._linger)
        taken = [self._queue.popleft() for _ in range(min(len(self._queue), self._batch))]
        self._busy = len(taken) > 1
        self._sending = taken
        try:
            if taken:
                await self._settle(taken)
        except BaseException:
            # Whether it was committed is not known. The fence makes sending it again harmless.
            self._uncertain.update(settlement.claim.id for settlement in taken)
            self._queue.extendleft(reversed(taken))
            raise
        finally:
            self._sending = ()

    async def _settle(self, taken: Sequence[Settlement]) -> None:
        failpoint("settle.sending")
        try:
            settled = await self._store.settle(self._worker_id, taken)
        except ValueRefusedError as exc:
            settled = await self._settle_apart(taken, exc)
        failpoint("settle.committed")
        self._written()
        for settlement in taken:
            claim = settlement.claim
            if claim.id not in settled:
                # After a broken connection it may be our own first try that ended it.
                event = "claim.end_unknown" if claim.id in self._uncertain else "claim.lost"
                log.warning(event, extra={"job_id": claim.id, "claim_no": claim.claim_no})
        self._uncertain.difference_update(settlement.claim.id for settlement in taken)

    async def _settle_apart(self, taken: Sequence[Settlement], error: ValueRefusedError) -> set[JobId]:
        """One of these is refused by the store: it becomes a dead letter, the others are written."""
        if len(taken) > 1:
            settled: set[JobId] = set()
            for settlement in taken:
                try:
                    settled |= await self._store.settle(self._worker_id, [settlement])
                except ValueRefusedError as exc:
                    settled |= await self._settle_apart([settlement], exc)
            return settled
        claim = taken[0].claim
        log.error("claim.end_refused", extra={"job_id": claim.id, "error": repr(error)}, exc_info=error)
        refused = Settlement(claim=claim, outcome=Outcome.DEAD, reason="refused_by_store", error='{"type": "refused"}')
        return await self._store.settle(self._worker_id, [refused])
