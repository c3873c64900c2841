"""Commands on one aggregate queue up within a process, so that they do not conflict with each other."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import ContextVar

import anyio

from eventflow.eventstore import StreamId


class _Turn:
    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.wanted_by = 0


class Turns:
    """
    One command at a time for each stream, first come, first served.

    A handler that publishes to its own aggregate does not wait for itself: the one inside goes first.
    """

    def __init__(self) -> None:
        self._turns: dict[StreamId, _Turn] = {}
        self._mine: ContextVar[frozenset[StreamId]] = ContextVar("eventflow_turns", default=frozenset())

    @asynccontextmanager
    async def turn(self, stream: StreamId | None) -> AsyncGenerator[None]:
        """Wait for the stream's turn, and have it until the end of the block."""
        mine = self._mine.get()
        if stream is None or stream in mine:
            yield
            return
        turn = self._turns.setdefault(stream, _Turn())
        turn.wanted_by += 1
        try:
            async with turn.lock:
                token = self._mine.set(mine | {stream})
                try:
                    yield
                finally:
                    self._mine.reset(token)
        finally:
            turn.wanted_by -= 1
            if not turn.wanted_by:
                del self._turns[stream]
