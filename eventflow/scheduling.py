"""The options of every call that schedules."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TypedDict

import msgspec

from eventflow.clock import to_microseconds
from eventflow.errors import InvalidScheduleError
from eventflow.retry import RetryPolicy

PRIORITIES = range(4)
"""0 is served first; the default is 1."""

_EARLIEST = 946_684_800 * 1_000_000  # 2000-01-01, in microseconds since the epoch
_LATEST = 7_258_118_400 * 1_000_000  # 2200-01-01


class ScheduleOptions(TypedDict, total=False):
    """
    When a job runs, and how it differs from its registration.

    Keys:
        at: The instant before which it does not run, aware. One in the past means now.
        delay: How long to wait, counted from the insert by the database's clock. Not together with *at*.
        queue: The queue; default: the registration's, else ``"default"``.
        priority: 0 (first) to 3; default: the registration's, else 1.
        key: Stored with the job, to serve serial execution and uniqueness.
        tags: Labels to find it by.
        retry: Numbers that replace the registration's policy; without ``on``.
        timeout: Longest time of one attempt, instead of the registration's.
    """

    at: datetime | None
    delay: timedelta | None
    queue: str | None
    priority: int | None
    key: str | None
    tags: Sequence[str]
    retry: RetryPolicy | None
    timeout: timedelta | None


class Due(msgspec.Struct, frozen=True):
    """When a job may first run: at an instant or after a delay, in microseconds; neither: at once."""

    at_us: int | None = None
    delay_us: int | None = None


def due_of(at: datetime | None, delay: timedelta | None) -> Due:
    """
    Check the time options of a call.

    Raises:
        InvalidScheduleError: both are given, the instant is naive or outside 2000 to 2200, the delay is
            negative or longer than a hundred years.
    """
    if at is not None and delay is not None:
        raise InvalidScheduleError("give at= or delay=, not both")
    if at is not None:
        if not isinstance(at, datetime):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
            raise InvalidScheduleError(f"at= takes a datetime, not {type(at).__name__}")
        if at.utcoffset() is None:
            raise InvalidScheduleError(f"at={at.isoformat()} is naive; use an aware datetime, e.g. datetime.now(UTC)")
        instant = to_microseconds(at)
        if not _EARLIEST <= instant < _LATEST:
            raise InvalidScheduleError(f"at={at.isoformat()} is outside the years 2000 to 2199")
        return Due(at_us=instant)
    if delay is not None:
        if not isinstance(delay, timedelta):  # pyright: ignore[reportUnnecessaryIsInstance] - as above
            raise InvalidScheduleError(f"delay= takes a timedelta, not {type(delay).__name__}")
        if delay < timedelta(0):
            raise InvalidScheduleError(f"delay={delay} is negative")
        if delay > timedelta(days=36_500):
            raise InvalidScheduleError(f"delay={delay} is longer than a hundred years")
        return Due(delay_us=to_microseconds(delay))
    return Due()


def check_text(option: str, value: str, longest: int) -> str:
    """Refuse a name, key or tag that the tables would not take."""
    if not isinstance(value, str) or not 1 <= len(value) <= longest or "\0" in value:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidScheduleError(f"{option}={value!r}: 1 to {longest} characters without NUL")
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise InvalidScheduleError(f"{option}={value!r} is not valid Unicode") from exc
    return value


def check_priority(priority: int) -> int:
    """Refuse a priority outside 0 to 3."""
    if not isinstance(priority, int) or priority not in PRIORITIES:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidScheduleError(f"priority={priority!r}: 0 (first) to 3")
    return priority


def check_retry(retry: RetryPolicy) -> RetryPolicy:
    """Refuse what is no retry policy, such as a number of attempts."""
    if not isinstance(retry, RetryPolicy):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise InvalidScheduleError(f"retry= takes a RetryPolicy, not {type(retry).__name__}")
    return retry


def check_timeout(timeout: timedelta | None) -> timedelta | None:
    """Refuse a timeout that no attempt can meet."""
    if timeout is None:
        return None
    if not isinstance(timeout, timedelta):  # pyright: ignore[reportUnnecessaryIsInstance] - as above
        raise InvalidScheduleError(f"timeout= takes a timedelta, not {type(timeout).__name__}")
    if not timedelta(0) < timeout <= timedelta(days=365):
        raise InvalidScheduleError(f"timeout={timeout}: longer than 0, at most 365 days")
    return timeout
