"""Who is woken after a commit: workers of this process directly, the others by notification."""

from collections.abc import Callable
from typing import NamedTuple

from eventflow.postgres.notifier import Notifier

WAKE_WITHIN_US = 1_500_000
"""Workers look by themselves once a second, so a job due later than this wakes nobody."""


class Notified(NamedTuple):
    """What came of a notification."""

    is_done: bool
    """Workers were notified; otherwise others did so a moment before, perhaps too early for this."""
    wait_us: int
    """Until the next should be sent."""


class Wakes:
    """
    Wakes workers after commits.

    Args:
        notifier: Reaches those of other processes; without one nobody else is told.
    """

    def __init__(self, notifier: Notifier | None = None) -> None:
        self._notifier = notifier
        self._here: list[Callable[[], None]] = []

    def on_wake(self, wake: Callable[[], None]) -> None:
        """A worker in this process."""
        self._here.append(wake)

    def committed(self, soonest_us: int = 0, *, notified: Notified | None = None) -> None:
        """
        Jobs were committed.

        Args:
            soonest_us: The first of them is ready in so many microseconds.
            notified: Their insert has seen to the others by itself; ``None``: it has not.
        """
        if soonest_us >= WAKE_WITHIN_US:
            return
        for wake in self._here:
            wake()
        if self._notifier is None:
            return
        if notified is None:
            self._notifier.mark()
        else:
            self._notifier.tried(*notified)

    def may_notify(self) -> bool:
        """Whether an insert should notify the others by itself; only one should at a time."""
        return self._notifier is not None and self._notifier.is_at_rest

    def signal(self) -> None:
        """Something is asked of a claimed job."""
        if self._notifier is not None:
            self._notifier.signal()
