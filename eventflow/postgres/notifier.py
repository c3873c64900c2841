"""Wakes workers after commits: coalesced, on a connection of its own, never in a producer's transaction."""

from math import inf

from eventflow.clock import Clock, Wakeup
from eventflow.failpoints import failpoint
from eventflow.postgres.connection import Lane
from eventflow.postgres.statements import statement

AFTER_FAILURE_SECONDS = 1.0
"""So long no insert tries by itself what has just failed."""
REST_SECONDS = 0.01
"""After so long without a notification, an insert sends its own: sooner by a round trip, but not shared."""


class Notifier:
    """
    Sends one notification for many commits, of this process and of others.

    The first goes out at once. How soon another may follow depends on how many listen, and the database tells it to
    all who notify. A notification is a hint: if the process dies before it is sent, workers find the jobs by their
    own look, within a second.
    """

    def __init__(self, lane: Lane, schema: str, clock: Clock) -> None:
        self._lane = lane
        self._statement = statement("wake_workers", schema)
        self._clock = clock
        self._marked = Wakeup(clock)
        self._signal = False
        self._next_at = -inf
        self._failed_until = -inf

    @property
    def is_at_rest(self) -> bool:
        """Nothing has been sent for a while, nor failed to be."""
        return self._clock.monotonic() >= max(self._next_at + REST_SECONDS, self._failed_until)

    def mark(self) -> None:
        """Jobs were committed."""
        self._marked.set()

    def signal(self) -> None:
        """Something is asked of a claimed job."""
        self._signal = True
        self._marked.set()

    def tried(self, is_done: bool, wait_us: int) -> None:
        """An insert has notified workers, or others had just done it; the next may follow after so long."""
        self._next_at = self._clock.monotonic() + wait_us / 1_000_000
        if not is_done:
            self.mark()

    async def notify_step(self) -> None:
        """Wait for a mark, and until workers have been notified since."""
        await self._marked.wait()
        since_us: int | None = None
        is_done = False
        while not is_done:
            if (pause := self._next_at - self._clock.monotonic()) > 0:
                await self._clock.sleep(pause)
            if await self._marked.wait(0):
                since_us = None  # whoever has notified by now has not done it for this
            is_done, since_us = await self._try(since_us)

    async def _try(self, since_us: int | None) -> tuple[bool, int]:
        payload, self._signal = ("signal" if self._signal else ""), False
        failpoint("notify.sending")
        try:
            [row] = await self._lane.fetch(self._statement, payload, since_us)
        except BaseException:
            self._failed_until = self._clock.monotonic() + AFTER_FAILURE_SECONDS
            self._signal = self._signal or payload == "signal"
            self._marked.set()
            raise
        self._next_at = self._clock.monotonic() + row["wait_us"] / 1_000_000
        return row["is_done"], since_us or row["now_us"]
