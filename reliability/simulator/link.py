"""The way between a process and the server: slow, cut, and sometimes without an answer."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from random import Random
from typing import Any, ParamSpec, TypeVar

from eventflow.errors import DatabaseUnavailableError
from eventflow.postgres.connection import STATEMENT_SECONDS
from reliability.simulator.loop import THREAD, SimulatedLoop
from reliability.simulator.server import Server
from reliability.simulator.sessions import Session

T = TypeVar("T")
P = ParamSpec("P")

LATENCIES_SECONDS = ((5e-6, 20e-6), (50e-6, 1e-3), (1e-3, 4e-3))
"""Of one way, from and to: on the same machine, in the same house, in another."""


class LostError(ConnectionError):
    """
    A call that has no answer.

    Attributes:
        was_sent: It may have been carried out, or may yet be.
    """

    def __init__(self, text: str, *, was_sent: bool) -> None:
        super().__init__(text)
        self.was_sent = was_sent


class Link:
    """
    One process's network.

    Args:
        listening: Where notifications arrive.

    Attributes:
        is_cut: Nothing comes through, and nobody is told.
        is_closed: It will never be used again.
        slowness: How many times slower it is.
        refusals: So many calls are refused by the server.
        losses: So many calls are carried out, and their connection breaks before the answer.
        sessions: Those that were opened to listen.
    """

    def __init__(self, loop: SimulatedLoop, server: Server, listening: Context, rng: Random) -> None:
        self.server = server
        self.sessions: list[Session] = []
        self._listening = listening
        self.is_cut = False
        self.is_closed = False
        self.slowness = 1.0
        self.refusals = 0
        self.losses = 0
        self._loop = loop
        self._rng = rng
        self._latency = rng.choice(LATENCIES_SECONDS)
        self._waiting: dict[asyncio.Future[Any], None] = {}
        self._held: list[tuple[Callable[[], None], Context]] = []

    async def call(self, call: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """
        Have the server do something.

        Raises:
            DatabaseUnavailableError: it refused.
            LostError: there was no answer.
        """
        if self.is_closed:
            raise LostError("it is over", was_sent=False)
        answer: asyncio.Future[T] = self._loop.create_future()
        here = THREAD.get().context()
        is_lost, is_refused = self.losses > 0, self.refusals > 0
        if is_lost:
            self.losses -= 1
        elif is_refused:
            self.refusals -= 1

        def arrive() -> None:
            if not self.server.is_up:
                self.back(lambda: _fail(answer, LostError("the server is down", was_sent=False)), here)
            elif is_refused:
                self.back(lambda: _fail(answer, DatabaseUnavailableError("the server refuses")), here)
            else:
                result = _outcome(lambda: self.server.run(call, *args, **kwargs))
                if is_lost:
                    self.back(lambda: _fail(answer, LostError("the connection broke", was_sent=True)), here)
                else:
                    self.back(lambda: result(answer), here)

        self.there(arrive)
        expiry = self._loop.call_later(
            STATEMENT_SECONDS, lambda: _fail(answer, LostError("no answer", was_sent=True)), context=here
        )
        self._waiting[answer] = None
        try:
            return await answer
        finally:
            self._waiting.pop(answer, None)
            expiry.cancel()

    def there(self, action: Callable[[], None]) -> None:
        """Something that the server notices."""
        self._send(action, self.server.context)

    def back(self, action: Callable[[], None], thread: Context | None = None) -> None:
        """Something that the process notices, in its thread that listens or in another one."""
        self._send(action, self._listening if thread is None else thread)

    def reset(self) -> None:
        """All connections break at once, on both sides."""
        for session in self.sessions:
            session.end()
        for answer in list(self._waiting):
            _fail(answer, LostError("connection reset", was_sent=True))

    def heal(self) -> None:
        """What was sent meanwhile arrives."""
        self.is_cut = False
        held, self._held = self._held, []
        for action, context in held:
            self._send(action, context)

    def _send(self, action: Callable[[], None], context: Context) -> None:
        latency = self._rng.uniform(*self._latency) * self.slowness
        self._loop.call_later(latency, self._arrive, action, context, context=context)

    def _arrive(self, action: Callable[[], None], context: Context) -> None:
        if self.is_cut:
            self._held.append((action, context))
        else:
            action()


def _outcome(call: Callable[[], T]) -> Callable[[asyncio.Future[T]], None]:
    """What a call has come to, for whoever waits for it."""
    try:
        result = call()
    except Exception as exc:  # noqa: BLE001 - raised where it was called
        return lambda answer, exc=exc: _fail(answer, exc)
    return lambda answer: _give(answer, result)


def _give(answer: asyncio.Future[T], result: T) -> None:
    if not answer.done():
        answer.set_result(result)


def _fail(answer: asyncio.Future[Any], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
