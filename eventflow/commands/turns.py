"""Commands on one aggregate queue up within a process, so that they do not conflict with each other."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import ContextVar

import anyio

from eventflow.eventstore import StreamId


class _Turn:
    def __init__(self) -> None:
        self.lock = anyio.Lock(fast_acquire=True)
        self.wanted_by = 0


class Turns:
    """
    One command at a time for each stream, first come, first served.

    Who has a turn waits for no other one: a handler that publishes to its own aggregate would wait for itself, and two
    that publish to each other's for ever. Such commands go first, and the store finds their conflicts.
    """

    def __init__(self) -> None:
        self._turns: dict[StreamId, _Turn] = {}
        self._has_one: ContextVar[bool] = ContextVar("eventflow_has_turn", default=False)

    @asynccontextmanager
    async def turn(self, stream: StreamId | None) -> AsyncGenerator[None]:
        """Wait for the stream's turn, and have it until the end of the block."""
        if stream is None or self._has_one.get():
            yield
            return
        turn = self._turns.setdefault(stream, _Turn())
        turn.wanted_by += 1
        try:
            async with turn.lock:
                token = self._has_one.set(True)
                try:
                    yield
                finally:
                    self._has_one.reset(token)
        finally:
            turn.wanted_by -= 1
            if not turn.wanted_by:
                del self._turns[stream]

    def __len__(self) -> int:
        """Streams that somebody has or waits for."""
        return len(self._turns)
