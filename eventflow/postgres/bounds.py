"""From where on claims look: below that, nothing is left to find but dead index entries."""

from collections import deque
from collections.abc import Mapping

import msgspec

MARGIN_US = 100_000
"""Between a writer's look at the clock, which makes a job ready, and its first trace among the open transactions."""
PATIENCE_US = 5_000_000
"""A transaction that is open for longer holds no bound back; the sweep finds its jobs after its commit."""
LOOK_EVERY_US = 100_000
"""Bounds move in such steps, each at the price of one more look into every range."""
STEP_US = 1_000_000
"""An answer from so long before the last one shows that the database's clock was set back; a late one is younger."""


class _Look(msgspec.Struct, frozen=True):
    at_us: int
    next_xid: int
    """No transaction had this number by then, nor one beyond."""


class LowerBounds:
    """
    The lower bound of each range of the claim index, kept in memory by a process that claims.

    No job becomes ready in the past, by the database's clock. So after a look at a range, jobs can turn up below its
    time only from transactions that were open then. The bound follows to the time of the last look whose
    transactions have all ended, or to the earliest job still unclaimed, whichever is first.

    Attributes:
        bounds_us: By number of the range, from 1 on, in microseconds since the epoch; 0: none.
        settled_xid: Transactions before this one are not waited for.
        open_xid: The oldest transaction that was open at the last look.
    """

    def __init__(self) -> None:
        self.bounds_us: list[int] = []
        self.settled_xid = 0
        self.open_xid = 0
        self._next_xid = 0
        self._swept_xid = 0
        self._looks: deque[_Look] = deque()

    @property
    def look_from_us(self) -> int:
        """When the next look is worth its price."""
        return self._looks[-1].at_us + LOOK_EVERY_US if self._looks else 0

    @property
    def may_have_passed_jobs(self) -> bool:
        """Whether anybody may have written since the last sweep."""
        return self._swept_xid < self._next_xid

    def swept(self, open_xid: int) -> None:
        """A sweep found what transactions before this one have written."""
        self._swept_xid = open_xid

    def learn(self, at_us: int, *, open_xid: int, oldest_xid: int, next_xid: int, left_us: Mapping[int, int]) -> None:
        """
        Take a look into account.

        Args:
            at_us: When it was made.
            open_xid: The oldest transaction that was open.
            oldest_xid: The same, from :attr:`settled_xid` on.
            next_xid: A number that none had by then, nor one beyond.
            left_us: By number of the range, when the earliest job that stayed there was ready; 0: none stayed.
        """
        if self._looks and at_us < self._looks[-1].at_us:
            if at_us < self._looks[-1].at_us - STEP_US:
                self.set_back()
            return  # the answer was late: another has told more
        self.open_xid, self._next_xid = open_xid, next_xid
        known_us = 0
        while self._looks and self._looks[0].next_xid <= oldest_xid:
            known_us = self._looks.popleft().at_us - MARGIN_US
        self._looks.append(_Look(at_us, next_xid))
        while self._looks[0].at_us < at_us - PATIENCE_US:
            self.settled_xid = self._looks.popleft().next_xid
        for number, left in left_us.items():
            self._raise(number, min(known_us, left or known_us))

    def _raise(self, number: int, bound_us: int) -> None:
        if number > len(self.bounds_us):
            self.bounds_us += [0] * (number - len(self.bounds_us))
        self.bounds_us[number - 1] = max(self.bounds_us[number - 1], bound_us)

    def set_back(self) -> None:
        """The database's clock was set back: jobs may be ready anywhere."""
        self._looks.clear()
        self.bounds_us = []
