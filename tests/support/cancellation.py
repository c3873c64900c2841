"""Cancels a coroutine at every one of its suspensions in turn."""

import asyncio
import gc
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from enum import Enum
from functools import partial
from typing import Any

import anyio

SECONDS = 20.0
"""No step here takes longer, on however busy a machine."""


class Cancel(Enum):
    """How a coroutine is cancelled."""

    WAITING = "waiting"
    """``Task.cancel()`` while it waits, as ``asyncio.timeout`` does it: once, and no shield of anyio holds it off."""
    ANSWERED = "answered"
    """The same when what it waits for is there, but it has not gone on yet: results get lost that way."""
    SCOPE = "scope"
    """A cancel scope of anyio: every unshielded wait from then on ends at once."""


async def cancel_everywhere(
    how: Cancel,
    call: Callable[[int], Coroutine[Any, Any, object]],
    check: Callable[[int], Awaitable[None]],
    *,
    may_end: bool = False,
) -> int:
    """
    Call, and cancel at the first suspension; call again, and cancel at the second; until a call ends untouched.

    Args:
        how: What cancels it.
        call: Makes the coroutine; gets the number of the suspension.
        check: Called after each.
        may_end: The call cancels a group of its own when it ends: anyio can lose a ``Task.cancel()`` that comes in the
            same turn of the event loop.

    Returns:
        The number of suspensions.

    Raises:
        AssertionError: a call went on as if it had not been cancelled.
    """
    for position in itertools.count(1):
        with anyio.fail_after(SECONDS):
            steps = _Steps(call(position), how, position)
            cancelled = await steps.run()
            assert cancelled or not steps.reached or may_end or how is Cancel.SCOPE, f"swallowed at {position}"
            await check(position)
        if not steps.reached:
            return position - 1
    raise AssertionError


class _Steps:
    """Runs a coroutine in a task of its own, and counts how often it is suspended."""

    def __init__(self, coroutine: Coroutine[Any, Any, object], how: Cancel, position: int) -> None:
        self._coroutine = coroutine
        self._how = how
        self._position = position
        self._count = 0
        self._scope = anyio.CancelScope()
        self._task: asyncio.Task[None]

    @property
    def reached(self) -> bool:
        """Whether there were so many suspensions."""
        return self._count >= self._position

    async def run(self) -> bool:
        """Run it to its end; tells whether that was a cancellation."""
        async with asyncio.TaskGroup() as group:
            self._task = group.create_task(self._run())
        return self._task.cancelled() or self._scope.cancelled_caught

    async def _run(self) -> None:
        with self._scope:
            await self

    def __await__(self) -> Generator[Any, Any, None]:  # Any: what coroutines and the event loop tell each other
        resume: Callable[[], Any] = partial(self._coroutine.send, None)
        while True:
            try:
                awaited = resume()
            except StopIteration:
                return
            self._count += 1
            if self._count == self._position:
                self._interrupt(awaited)
            try:
                resume = partial(self._coroutine.send, (yield awaited))
            except BaseException as exc:  # noqa: BLE001 - the coroutine's to handle
                resume = partial(self._coroutine.throw, exc)

    def _interrupt(self, awaited: "asyncio.Future[Any] | None") -> None:
        if self._how is Cancel.SCOPE:
            self._scope.cancel()
        elif self._how is Cancel.ANSWERED and awaited is not None:
            awaited.add_done_callback(lambda _: self._task.cancel())  # before the task's own, which makes it go on
        else:
            self._task.cancel()


@asynccontextmanager
async def no_noise() -> AsyncGenerator[None]:
    """Nothing is reported to the event loop's exception handler: no exception never retrieved, no task destroyed."""
    loop = asyncio.get_running_loop()
    heard: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: heard.append(context))
    try:
        yield
        gc.collect()  # what is reported is reported by finalizers
    finally:
        loop.set_exception_handler(None)
    assert not heard, heard
