"""Waiting for something that can be observed, instead of for a time."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg

from eventflow import SystemClock

T = TypeVar("T")

DEADLINE_SECONDS = 15.0
"""Far beyond what anything here takes, also on a machine that does much else."""


async def eventually(
    observe: Callable[[], Awaitable[T]], *, within: float = DEADLINE_SECONDS, every: float = 0.01
) -> T:
    """
    Look until what is seen is true, and return it.

    Args:
        observe: Looks once.
        within: Seconds after which it is a failure.
        every: Seconds between two looks.

    Raises:
        AssertionError: the deadline passed; the message shows what was seen last.
    """
    clock = SystemClock()
    until = clock.monotonic() + within
    while not (seen := await observe()):
        if clock.monotonic() > until:
            raise AssertionError(f"not seen within {within:g} s: {describe(observe)}; last seen: {seen!r}")
        await clock.sleep(every)
    return seen


async def until(condition: Callable[[], object], *, within: float = DEADLINE_SECONDS) -> None:
    """:func:`eventually`, for a condition that needs no awaiting."""

    async def observe() -> bool:
        return bool(condition())

    observe.__qualname__ = describe(condition)
    await eventually(observe, within=within)


def describe(observe: Callable[..., object]) -> str:
    """What to call a condition in a failure."""
    return getattr(observe, "__qualname__", repr(observe))


async def waits_for_lock(admin: "asyncpg.Connection[asyncpg.Record]", text: str) -> bool:
    """Whether a statement with this text waits for a lock that somebody holds."""
    await admin.execute("SELECT pg_stat_clear_snapshot()")  # what this transaction has seen of others before
    return await admin.fetchval(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%' || $1 || '%'"
        " AND pid <> pg_backend_pid() AND datname = current_database())",
        text,
    )
