"""Sessions that listen: what the real listener opens, as far as it uses it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from eventflow.postgres.statements import DEFAULT_SCHEMA, statement

if TYPE_CHECKING:
    from reliability.simulator.link import Link

LOCK = statement("take_session_lock")
PID = 1


class Session:
    """
    A connection of its own, with the methods of asyncpg's that the listener calls.

    Attributes:
        lock: The advisory lock that it holds.
    """

    def __init__(self, link: "Link") -> None:
        self._link = link
        self._is_open = True
        self._is_known = True
        self._channels: dict[str, Callable[..., object]] = {}
        self._lost: Callable[[object], object] = lambda _: None
        self.lock: int | None = None

    # What the listener calls

    def add_termination_listener(self, callback: Callable[[object], object]) -> None:
        self._lost = callback

    async def add_listener(self, channel: str, callback: Callable[..., object]) -> None:
        async def listen() -> None:
            if not self._is_known:
                raise ConnectionResetError("the server knows nothing of this session")
            self._channels[channel] = callback

        await self._link.call(listen)

    async def execute(self, query: str) -> str:
        return "SELECT 1"  # it is no pooler that answers

    def get_server_pid(self) -> int:
        return PID

    async def fetchval(self, query: str, *arguments: Any, timeout: float | None = None) -> Any:
        async def answer() -> Any:
            if not self._is_known:
                raise ConnectionResetError("the server knows nothing of this session")
            if query == LOCK:
                self.lock = arguments[0]
                return True
            return self._link.server.identity

        return await self._link.call(answer)

    def terminate(self) -> None:
        """The client ends it; the server hears of it unless the network is cut."""
        self._is_open = False
        self._link.there(self.end)

    # What the server and the network do

    @property
    def listens(self) -> bool:
        """Notifications that wake workers come here."""
        return self._is_known and DEFAULT_SCHEMA in self._channels

    def end(self) -> None:
        """The server ends it, and the client hears of it unless the network is cut."""
        self.forget()
        if self._is_open:
            self._link.back(self._on_lost)

    def forget(self) -> None:
        """The server ends it, and the client never hears of it."""
        self._link.server.sessions.pop(self, None)
        self.lock = None
        self._is_known = False

    def hear(self, channel: str, payload: str) -> None:
        """A notification for whoever listens to the channel."""
        callback = self._channels.get(channel)
        if callback is not None:
            self._link.back(lambda: self._on_heard(callback, channel, payload))

    def _on_heard(self, callback: Callable[..., object], channel: str, payload: str) -> None:
        if self._is_open:
            callback(self, PID, channel, payload)

    def _on_lost(self) -> None:
        if self._is_open:
            self._is_open = False
            self._lost(self)
