"""The store's time, known to a worker without asking."""

from eventflow.clock import Clock

DRIFT = 500e-6
"""How much faster this machine's clock may run than the store's: 500 ppm, what NTP would still correct."""


class StoreTime:
    """
    A lower bound of the store's time: what a job waits for, so that it is never early.

    A sample counts as taken when its reply arrived, which is after the store read its clock; from then on the
    bound grows with this machine's monotonic clock, a little slower.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sample_us = 0
        self._sampled_at = clock.monotonic()

    def sample(self, now_us: int, *, asked_at: float) -> None:
        """
        Take the store's time from a reply that has just arrived.

        Args:
            now_us: The store's time.
            asked_at: Monotonic seconds when the request was sent.
        """
        arrived = self._clock.monotonic()
        round_trip_us = (arrived - asked_at) * 1_000_000
        # A reply that was long on its way gives a low bound; the one we have may be better. But a bound above
        # what the store's clock can show by now means that it was set back: then the new sample holds.
        if now_us <= self.bound_us() <= now_us + round_trip_us:
            return
        self._sample_us, self._sampled_at = now_us, arrived

    def bound_us(self) -> int:
        """The store's time is at least this, in microseconds since the epoch."""
        age = self._clock.monotonic() - self._sampled_at
        return self._sample_us + int(age * (1 - DRIFT) * 1_000_000)

    def seconds_until(self, instant_us: int) -> float:
        """How long to wait until the bound reaches an instant; not positive: it has."""
        return (instant_us - self.bound_us()) / (1 - DRIFT) / 1_000_000
