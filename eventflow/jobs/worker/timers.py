"""Jobs in memory that are not due yet, fired by the store's time without asking it."""

import heapq
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from math import inf

from eventflow.clock import Clock, Wakeup
from eventflow.errors import DatabaseError
from eventflow.ids import JobId
from eventflow.jobs.records import ClaimedJob
from eventflow.jobs.worker.slots import Slots
from eventflow.jobs.worker.store_time import StoreTime

LONGEST_WAIT_SECONDS = 0.5
"""The store's clock may be set forward: what it makes due must not sleep on by the old one."""
FINE_SECONDS = 0.001
"""Event loops sleep by the millisecond; the last one before a job's time is waited out without sleeping."""
FINE_SHARE = 0.1
"""Most of the time that goes into that."""
NEAR_SECONDS = 0.02
"""So long before a job is ready, the store's time is asked for once more."""
SHARP_SECONDS = 0.0005
"""Unless it is known as well as that."""
DISTANT_SECONDS = 0.002
"""A store that takes longer to answer tells little more than a claim does."""
RARELY_SECONDS = 1.0
"""The least time between two questions to such a store."""


class Timers:
    """
    A heap of claimed jobs by the time they are ready.

    Args:
        slots: Where they run, once the store's time has certainly come.
        store_time: The lower bound it goes by, so that no job is early.
        read_time: Asks the store for it.
        fired: Called after jobs left the heap.
    """

    def __init__(
        self,
        *,
        slots: Slots,
        store_time: StoreTime,
        read_time: Callable[[], Awaitable[int]],
        clock: Clock,
        fired: Callable[[], None],
    ) -> None:
        self._slots = slots
        self._store_time = store_time
        self._read_time = read_time
        self._clock = clock
        self._fired = fired
        self._heap: list[tuple[int, JobId, ClaimedJob]] = []
        self._changed = Wakeup(clock)
        self._head_changed = Wakeup(clock)
        self._fine_from = -inf
        self._ask_from = -inf

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
            self._head_changed.set()

    def take(self, job_id: JobId) -> ClaimedJob | None:
        """Take one job out, if it waits here."""
        for entry in self._heap:
            if entry[1] == job_id:
                self._heap.remove(entry)
                heapq.heapify(self._heap)
                self._head_changed.set()
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
            self._head_changed.set()
        if self._heap:
            await self._wait(self._store_time.seconds_until(self._heap[0][0]))
        else:
            await self._changed.wait()

    async def _wait(self, seconds: float) -> None:
        now = self._clock.monotonic()
        if now + seconds < self._fine_from:
            await self._changed.wait(min(seconds, LONGEST_WAIT_SECONDS))
        elif seconds > FINE_SECONDS:
            await self._changed.wait(min(seconds - FINE_SECONDS, LONGEST_WAIT_SECONDS))
        else:
            await self._clock.sleep_exactly(seconds)
            self._fine_from = now + FINE_SECONDS / FINE_SHARE

    async def sharpen_step(self) -> None:
        """
        Wait until a job is near, and ask the store for its time once more.

        The answer to a claim tells it late, after a commit. A job that goes by this starts as much later.
        """
        slack, pause = self._store_time.slack(), None
        if self._heap:
            pause = self._store_time.seconds_until(self._heap[0][0]) - slack - NEAR_SECONDS
        if pause is None or pause > 0:
            await self._head_changed.wait(pause)
            return
        if slack > SHARP_SECONDS and self._clock.monotonic() >= self._ask_from:
            with suppress(DatabaseError):  # the next look at the store tells of it
                await self._sharpen()
        await self._head_changed.wait()

    async def _sharpen(self) -> None:
        asked_at = self._clock.monotonic()
        now_us = await self._read_time()
        self._store_time.sample(now_us, asked_at=asked_at)
        is_distant = self._store_time.slack() > DISTANT_SECONDS
        self._ask_from = self._clock.monotonic() + (RARELY_SECONDS if is_distant else NEAR_SECONDS)
        self._changed.set()
