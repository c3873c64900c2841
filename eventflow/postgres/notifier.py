"""Wakes workers after commits: coalesced, on a connection of its own, never in a producer's transaction."""

from eventflow.clock import Clock, Wakeup
from eventflow.failpoints import failpoint
from eventflow.postgres.connection import Lane
from eventflow.postgres.statements import statement

SHORTEST_INTERVAL = 0.001
"""Seconds between two notifications of this process while few listen."""
LISTENERS_PER_SECOND = 1500
"""Listeners that a database can wake in a second: with more of them, a notification is sent less often."""


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

    def mark(self) -> None:
        """Jobs were committed."""
        self._marked.set()

    def signal(self) -> None:
        """Something is asked of a claimed job."""
        self._signal = True
        self._marked.set()

    async def notify_step(self) -> None:
        """Wait for a mark and send one notification."""
        await self._marked.wait()
        payload, self._signal = ("signal" if self._signal else ""), False
        failpoint("notify.sending")
        try:
            row = await self._lane.fetchrow(self._statement, payload)
        except BaseException:
            self._signal = self._signal or payload == "signal"
            self._marked.set()
            raise
        listeners: int = row["listeners"] if row is not None else 0
        await self._clock.sleep(max(SHORTEST_INTERVAL, listeners / LISTENERS_PER_SECOND))
