"""What those need who have no bulk enqueue, and those whose worker is a coroutine."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

CALLERS = 20

T = TypeVar("T")


async def each(items: Iterable[T], call: Callable[[T], Awaitable[Any]], *, callers: int = CALLERS) -> None:
    """Call it with each item: so many callers, each one call after the other."""
    left = iter(items)

    async def caller() -> None:
        for item in left:
            await call(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())


@asynccontextmanager
async def running(service: Coroutine[Any, Any, Any]) -> AsyncGenerator[None]:
    """It runs while the block lasts, and is cancelled then; its failure ends the block."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(service)
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
