"""The store's time, known to a worker without asking."""

from typing import NamedTuple

from eventflow.clock import Clock

DRIFT = 500e-6
"""How much faster this machine's clock may run than the store's: 500 ppm, what NTP would still correct."""


class _Sample(NamedTuple):
    now_us: int
    asked_at: float
    arrived_at: float


class StoreTime:
    """
    A lower bound of the store's time: what a job waits for, so that it is never early.

    A sample counts as taken when its reply arrived, which is after the store read its clock; from then on the
    bound grows with this machine's monotonic clock, a little slower.

    The store's clock may be set back, or a failover lead to a server that is behind. The bound is right again with
    the first sample read after that, however long it was on its way: until then nobody here can know.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._latest: list[_Sample] = []  # each of them may be the one that the store's clock was read for last

    def sample(self, now_us: int, *, asked_at: float) -> None:
        """
        Take the store's time from a reply that has just arrived.

        Args:
            now_us: The store's time.
            asked_at: Monotonic seconds when the request was sent, or before.
        """
        # What had arrived by then was read before this one, and is out of date if the clock was set meanwhile. A
        # better bound is not kept for being better: a slow reply, say after a reconnect, may hide a clock set back.
        self._latest = [sample for sample in self._latest if sample.arrived_at > asked_at]
        self._latest.append(_Sample(now_us, asked_at, self._clock.monotonic()))

    def slack(self) -> float:
        """Seconds by which the store may be ahead of the bound, unless its clock was set forward."""
        now = self._clock.monotonic()
        return max(
            (sample.arrived_at - sample.asked_at + (now - sample.arrived_at) * DRIFT for sample in self._latest),
            default=0.0,
        )

    def bound_us(self) -> int:
        """The store's time is at least this, in microseconds since the epoch."""
        now = self._clock.monotonic()
        return min(
            (sample.now_us + int((now - sample.arrived_at) * (1 - DRIFT) * 1_000_000) for sample in self._latest),
            default=0,
        )

    def seconds_until(self, instant_us: int) -> float:
        """How long to wait until the bound reaches an instant; not positive: it has."""
        return (instant_us - self.bound_us()) / (1 - DRIFT) / 1_000_000
