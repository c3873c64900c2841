"""Whether and when a failed attempt is made again."""

from collections.abc import Mapping
from datetime import timedelta
from enum import Enum
from random import Random
from typing import Any

import msgspec

from eventflow.clock import to_microseconds
from eventflow.errors import DomainError, InvalidScheduleError

_LONGEST = timedelta(days=365)


class OnError(Enum):
    """What an exception type means for the job."""

    RETRY = "retry"
    DEAD_LETTER = "dead_letter"
    IGNORE = "ignore"
    """The job counts as done; the error is kept in its history."""


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """
    How often a job is tried, and how long it waits in between.

    Attributes:
        max_attempts: Attempts in all, the first included; then it is dead-lettered.
        base: Upper bound of the delay after the first attempt; it doubles with each.
        cap: Upper bound of every delay.
        on: What exception types mean; the nearest in the exception's ancestry decides, otherwise a retry.
            A :class:`DomainError` is dead-lettered unless this says otherwise.

    Raises:
        InvalidScheduleError: a number makes no sense.
    """

    max_attempts: int = 10
    base: timedelta = timedelta(seconds=2)
    cap: timedelta = timedelta(hours=1)
    on: Mapping[type[BaseException], OnError] = {}

    def __post_init__(self) -> None:
        if not 1 <= self.max_attempts <= 10_000:
            raise InvalidScheduleError(f"max_attempts must be 1 to 10000, not {self.max_attempts}")
        if not (timedelta(0) <= self.base <= _LONGEST and timedelta(0) <= self.cap <= _LONGEST):
            raise InvalidScheduleError("base and cap of a retry policy must be between 0 and 365 days")

    def decide(self, error: BaseException, attempt: int) -> OnError:
        """What becomes of a job whose *attempt* (counted from 1) ended with *error*."""
        meaning = OnError.RETRY
        for ancestor in type(error).__mro__:
            if ancestor in self.on:
                meaning = self.on[ancestor]
                break
            if ancestor is DomainError:
                meaning = OnError.DEAD_LETTER
                break
        if meaning is OnError.RETRY and attempt >= self.max_attempts:
            return OnError.DEAD_LETTER
        return meaning

    def delay(self, attempt: int, rng: Random) -> timedelta:
        """The pause after so many attempts; see :func:`retry_delay`."""
        return retry_delay(attempt, base=self.base, cap=self.cap, rng=rng)

    def to_stored(self) -> dict[str, int]:
        """
        The numbers of the policy, as they are stored with a job.

        Raises:
            InvalidScheduleError: it has rules for exception types, which only code can hold.
        """
        if self.on:
            raise InvalidScheduleError(
                "a retry policy given when scheduling cannot have rules in `on`: "
                "exception types belong to the registration of the job or command handler"
            )
        return {
            "max_attempts": self.max_attempts,
            "base_us": to_microseconds(self.base),
            "cap_us": to_microseconds(self.cap),
        }

    def with_stored(self, stored: Mapping[str, Any] | None) -> "RetryPolicy":  # Any: parsed JSON
        """This policy with the numbers that a call to ``schedule`` gave, if any."""
        if not stored:
            return self
        return RetryPolicy(
            max_attempts=int(stored["max_attempts"]),
            base=timedelta(microseconds=int(stored["base_us"])),
            cap=timedelta(microseconds=int(stored["cap_us"])),
            on=self.on,
        )


def retry_delay(attempt: int, *, base: timedelta, cap: timedelta, rng: Random) -> timedelta:
    """
    Delay before the next attempt: exponential backoff with full jitter.

    Uniform over ``[0, min(cap, base * 2 ** (attempt - 1)))``.

    Args:
        attempt: Attempts already made, counted from 1.
        base: Upper bound of the delay after the first attempt.
        cap: Upper bound of every delay.
        rng: Source of the jitter; pass a seeded one in tests.

    Raises:
        ValueError: *attempt* is below 1.

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

    >>> retry_delay(9, base=timedelta(seconds=2), cap=timedelta(0), rng=Random(1))
    datetime.timedelta(0)
    """
    if attempt < 1:
        raise ValueError(f"attempts are counted from 1, not {attempt}")
    doublings = min(attempt - 1, 60)  # further ones are beyond any cap, and beyond what a timedelta holds
    longest = min(cap.total_seconds(), base.total_seconds() * 2.0**doublings)
    return timedelta(seconds=longest * rng.random())
