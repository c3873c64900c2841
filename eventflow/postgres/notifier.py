"""Wakes workers after commits: coalesced, on a connection of its own, never in a producer's transaction."""

from math import inf

from eventflow.clock import Clock, Wakeup
from eventflow.failpoints import failpoint
from eventflow.postgres.connection import Lane
from eventflow.postgres.statements import statement

SHORTEST_INTERVAL = 0.001
"""Seconds between two notifications of this process while few listen."""
LISTENERS_PER_SECOND = 1500
"""Listeners that a database can wake in a second: with more of them, a notification is sent less often."""
REST_SECONDS = 0.01
"""After so long without a notification, an insert sends its own: sooner by a round trip, but not shared."""


class Notifier:
    """
    Sends one notification for many commits.

    The first goes out at once, those that come within the interval share the next. A notification is a hint: if
    the process dies before it is sent, workers find the jobs by their own look, within a second.
    """

    def __init__(self, lane: Lane, schema: str, clock: Clock) -> None:
        self._lane = lane
        self._statement = statement("notify_workers", schema)
        self._clock = clock
        self._marked = Wakeup(clock)
        self._signal = False
        self._next_at = -inf

    @property
    def is_at_rest(self) -> bool:
        """Nothing has been sent for a while."""
        return self._clock.monotonic() >= self._next_at + REST_SECONDS

    def notified(self, listeners: int) -> None:
        """A notification was sent, and reaches so many workers."""
        self._next_at = self._clock.monotonic() + max(SHORTEST_INTERVAL, listeners / LISTENERS_PER_SECOND)

    def mark(self) -> None:
        """Jobs were committed."""
        self._marked.set()

    def signal(self) -> None:
        """Something is asked of a claimed job."""
        self._signal = True
        self._marked.set()

    async def notify_step(self) -> None:
        """Wait for a mark and send one notification, some time after the last."""
        await self._marked.wait()
        await self._clock.sleep(max(0.0, self._next_at - self._clock.monotonic()))
        await self._marked.wait(0)  # it is for all marks until now
        payload, self._signal = ("signal" if self._signal else ""), False
        failpoint("notify.sending")
        try:
            row = await self._lane.fetchrow(self._statement, payload)
        except BaseException:
            self._signal = self._signal or payload == "signal"
            self._marked.set()
            raise
        self.notified(row["listeners"] if row is not None else 0)
