"""Jobs in memory that are not due yet, fired by the store's time without asking it."""

import heapq
from collections.abc import Callable, Iterable, Iterator

from eventflow.clock import Clock, Wakeup
from eventflow.ids import JobId
from eventflow.jobs.records import ClaimedJob
from eventflow.jobs.worker.slots import Slots
from eventflow.jobs.worker.store_time import StoreTime

LONGEST_WAIT_SECONDS = 0.5
"""The store's clock may be set forward: what it makes due must not sleep on by the old one."""


class Timers:
    """
    A heap of claimed jobs by the time they are ready.

    Args:
        slots: Where they run, once the store's time has certainly come.
        store_time: The lower bound it goes by, so that no job is early.
        fired: Called after jobs left the heap.
    """

    def __init__(self, *, slots: Slots, store_time: StoreTime, clock: Clock, fired: Callable[[], None]) -> None:
        self._slots = slots
        self._store_time = store_time
        self._fired = fired
        self._heap: list[tuple[int, JobId, ClaimedJob]] = []
        self._changed = Wakeup(clock)

    def __len__(self) -> int:
        return len(self._heap)

    def ids(self) -> Iterator[JobId]:
        """The jobs that wait here."""
        return (job_id for _, job_id, _ in self._heap)

    def add(self, claims: Iterable[ClaimedJob]) -> None:
        """Hold jobs until they are ready; those that are start at once."""
        now = self._store_time.bound_us()
        due: list[ClaimedJob] = []
        for claim in claims:
            if claim.ready_us <= now:
                due.append(claim)
            else:
                heapq.heappush(self._heap, (claim.ready_us, claim.id, claim))
        if due:
            self._slots.put(due)
        if self._heap:
            self._changed.set()

    def take(self, job_id: JobId) -> ClaimedJob | None:
        """Take one job out, if it waits here."""
        for entry in self._heap:
            if entry[1] == job_id:
                self._heap.remove(entry)
                heapq.heapify(self._heap)
                return entry[2]
        return None

    def take_all(self) -> list[ClaimedJob]:
        """Take all jobs out."""
        taken = [claim for _, _, claim in self._heap]
        self._heap.clear()
        return taken

    async def fire_step(self) -> None:
        """Wait for the next job's time and hand over everything that is ready."""
        now = self._store_time.bound_us()
        due: list[ClaimedJob] = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[2])
        if due:
            self._slots.put(due)
            self._fired()
        if self._heap:
            await self._changed.wait(min(self._store_time.seconds_until(self._heap[0][0]), LONGEST_WAIT_SECONDS))
        else:
            await self._changed.wait()
