"""Calls handlers: awaits an ``async def``, runs a plain ``def`` in a thread."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread

MOST_THREADS = 10_000
"""Far above any worker's concurrency, which is what bounds the threads; anyio's own limit is 40 for a process."""


def is_async_callable(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine; sees through ``functools.partial`` and callable objects."""
    code = getattr(function, "__code__", None)
    if code is not None and code.co_flags & inspect.CO_COROUTINE:
        return True  # most are, and this is the quickest way to see it
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


class Invoker:
    """Calls the handlers of one process."""

    def __init__(self) -> None:
        self._threads = anyio.CapacityLimiter(MOST_THREADS)

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:  # Any: whatever the handler returns
        """
        The result of a handler.

        A thread cannot be stopped: when cancelled, the call still waits until a plain function has returned.
        """
        if is_async_callable(function):
            return await function(*args)
        outcome, error = await anyio.to_thread.run_sync(_outcome, function, args, limiter=self._threads)
        if error is not None:
            raise error
        # A plain function around an async one, such as a decorator's, hands on its coroutine.
        return await outcome if inspect.isawaitable(outcome) else outcome


def _outcome(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
    # A GeneratorExit that a thread raises into a task would end the whole task, past every handler of it.
    try:
        return function(*args), None
    except BaseException as exc:  # noqa: BLE001 - raised again where the handler was called
        return None, exc
