"""Retry policies: whether and when a failed attempt is made again."""

from datetime import timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventflow import DomainError, InvalidScheduleError, OnError, RetryPolicy
from eventflow.retry import retry_delay

DURATIONS = st.timedeltas(timedelta(0), timedelta(days=365))


class NoStockError(DomainError):
    """A rule of the domain."""


@given(st.integers(1, 10_000), DURATIONS, DURATIONS, st.integers())
def test_delay_lies_within_its_bounds(attempt: int, base: timedelta, cap: timedelta, seed: int) -> None:
    """A delay is never negative, never above the cap, never above the doubled base; nothing overflows."""
    delay = retry_delay(attempt, base=base, cap=cap, rng=Random(seed))

    assert timedelta(0) <= delay <= cap
    assert delay.total_seconds() <= base.total_seconds() * 2.0 ** min(attempt - 1, 60) + 1e-6


def test_delay_uses_the_whole_range() -> None:
    """The jitter is full: delays of one attempt are spread from nothing to the bound, which doubles."""
    rng = Random(1)
    for attempt, bound in ((1, 2), (2, 4), (3, 8), (12, 3_600)):
        delays = [RetryPolicy().delay(attempt, rng).total_seconds() for _ in range(2_000)]

        assert min(delays) < 0.02 * bound
        assert max(delays) > 0.98 * bound
        assert max(delays) <= bound


@pytest.mark.parametrize("attempt", [0, -1])
def test_attempts_are_counted_from_one(attempt: int) -> None:
    """There is no delay before the first attempt to compute."""
    with pytest.raises(ValueError, match="counted from 1"):
        retry_delay(attempt, base=timedelta(1), cap=timedelta(1), rng=Random(1))


def test_nearest_ancestor_decides() -> None:
    """Of the rules that match an error, the one for its nearest ancestor holds, in whatever order they stand."""
    policy = RetryPolicy(
        on={Exception: OnError.IGNORE, KeyError: OnError.DEAD_LETTER, LookupError: OnError.RETRY},
    )

    assert policy.decide(KeyError(), 1) is OnError.DEAD_LETTER
    assert policy.decide(IndexError(), 1) is OnError.RETRY
    assert policy.decide(OSError(), 1) is OnError.IGNORE
    assert policy.decide(SystemExit(), 1) is OnError.RETRY


def test_domain_errors_are_dead_lettered() -> None:
    """A refusal by the domain is not worth a retry, unless a rule for it or for one nearer says so."""
    assert RetryPolicy().decide(NoStockError("none left"), 1) is OnError.DEAD_LETTER
    assert RetryPolicy(on={Exception: OnError.RETRY}).decide(NoStockError(), 1) is OnError.DEAD_LETTER
    assert RetryPolicy(on={DomainError: OnError.IGNORE}).decide(NoStockError(), 1) is OnError.IGNORE
    assert RetryPolicy(on={NoStockError: OnError.RETRY}).decide(NoStockError(), 1) is OnError.RETRY
    assert RetryPolicy(on={NoStockError: OnError.RETRY}).decide(DomainError(), 1) is OnError.DEAD_LETTER


def test_last_attempt_is_followed_by_the_dead_letters() -> None:
    """After max_attempts a failure is final; an ignored error stays ignored."""
    policy = RetryPolicy(max_attempts=3, on={OSError: OnError.IGNORE})

    decisions = [policy.decide(ValueError(), attempt) for attempt in (1, 2, 3, 4)]

    assert decisions == [OnError.RETRY, OnError.RETRY, OnError.DEAD_LETTER, OnError.DEAD_LETTER]
    assert policy.decide(OSError(), 3) is OnError.IGNORE


@pytest.mark.parametrize(
    ("max_attempts", "base", "cap"),
    [(0, 1, 1), (-1, 1, 1), (10_001, 1, 1), (1, -1, 1), (1, 1, -1), (1, 366, 1), (1, 1, 366)],
)
def test_numbers_that_make_no_sense_are_refused(max_attempts: int, base: int, cap: int) -> None:
    """A policy needs an attempt, and delays between nothing and a year."""
    with pytest.raises(InvalidScheduleError):
        RetryPolicy(max_attempts=max_attempts, base=timedelta(base), cap=timedelta(cap))


@given(st.integers(1, 10_000), DURATIONS, DURATIONS)
def test_stored_numbers_come_back(max_attempts: int, base: timedelta, cap: timedelta) -> None:
    """The numbers of a policy given to schedule replace the registration's; its rules stay."""
    given_in_call = RetryPolicy(max_attempts=max_attempts, base=base, cap=cap)
    registered = RetryPolicy(on={OSError: OnError.IGNORE})

    merged = registered.with_stored(given_in_call.to_stored())

    assert (merged.max_attempts, merged.base, merged.cap) == (max_attempts, base, cap)
    assert merged.on == registered.on


def test_nothing_stored_is_the_registration() -> None:
    """Without numbers in the call the registration's policy holds."""
    registered = RetryPolicy(max_attempts=2)

    assert registered.with_stored(None) is registered


def test_rules_for_exceptions_cannot_be_stored() -> None:
    """Exception types belong to code; a policy with rules is refused when scheduling."""
    with pytest.raises(InvalidScheduleError, match="`on`"):
        RetryPolicy(on={OSError: OnError.IGNORE}).to_stored()
