"""Whether a handler is awaited or runs in a thread."""

import functools
import inspect
from collections.abc import Callable
from typing import Any


def is_async_callable(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine; sees through ``functools.partial`` and callable objects."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
