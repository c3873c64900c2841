"""A TCP proxy before the server that loses answers, and networks."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit

import anyio
from anyio.abc import ByteStream, SocketAttribute

ENDED = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)


class Proxy:
    """
    Passes bytes between clients and the server.

    Args:
        target: The server's address, as asyncpg takes it.
    """

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self._marker: bytes | None = None
        self._count = 1
        self._marked_arrives = True
        self._links: set[_Link] = set()
        self._held: tuple[bool, bool] = (False, False)
        self._refusing = False
        self.delay = 0.0
        """Seconds by which everything comes later, on each way."""
        self.rate = float("inf")
        """Bytes a second that pass, on each way of each connection."""
        self.accepted = 0
        """Connections made so far."""
        self.cuts = 0
        """Connections that were cut."""

    def aim(self, target: str) -> None:
        """New connections lead to another server."""
        self._target = urlsplit(target)

    def cut_after(self, marker: bytes, *, passage: int = 1) -> None:
        """Once: let the message with this text reach the server, and cut its connection before the answer."""
        self._marker, self._count, self._marked_arrives = marker, passage, True

    def disarm(self) -> None:
        """Nobody is cut off any more, unless that is said again."""
        self._marker = None

    def cut_before(self, marker: bytes) -> None:
        """Once: cut a client off when it sends this text; the message is under way until :meth:`deliver`."""
        self._marker, self._count, self._marked_arrives = marker, 1, False

    async def deliver(self) -> None:
        """What was under way when its client was cut off arrives at the server after all."""
        for link in tuple(self._links):
            await link.deliver()

    def hold(self, *, requests: bool = True, answers: bool = True) -> None:
        """From now on nothing passes (or only the other way) on any connection, open or new; sockets stay open."""
        self._held = (requests, answers)
        for link in self._links:
            link.hold(*self._held)

    def hold_listening(self) -> None:
        """From now on nothing passes on connections that listen; they stay open."""
        for link in self._links:
            if link.listens:
                link.hold(True, True)

    def release(self) -> None:
        """Everything passes again, and first what was held."""
        self._held = (False, False)
        for link in self._links:
            link.hold(*self._held)

    def forget(self) -> None:
        """New connections pass; those that were held stay silent for ever."""
        self._held = (False, False)

    def reset(self) -> None:
        """Cut every connection."""
        for link in tuple(self._links):
            link.cut()

    def refuse(self, refusing: bool) -> None:
        """Cut every connection, and each new one at once; or no longer."""
        self._refusing = refusing
        if refusing:
            self.reset()

    @asynccontextmanager
    async def serve(self) -> AsyncGenerator[str]:
        """Accept connections; gives the address to connect to."""
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
        port = listener.extra(SocketAttribute.local_port)
        login = self._target.netloc.rpartition("@")[0]
        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, self._connect)
            yield urlunsplit(self._target._replace(netloc=f"{login}@127.0.0.1:{port}", query=""))
            group.cancel_scope.cancel()

    async def _connect(self, client: ByteStream) -> None:
        async with client:
            if self._refusing:
                return
            try:
                opened = await self._open_server()
            except OSError:
                return  # the server is away
            async with opened as server:
                link = _Link(self, client, server)
                link.hold(*self._held)
                self._links.add(link)
                self.accepted += 1
                try:
                    await link.run()
                finally:
                    self._links.remove(link)

    async def _open_server(self) -> ByteStream:
        query = parse_qs(self._target.query)
        if "host" in query:
            port = query.get("port", ["5432"])[0]
            return await anyio.connect_unix(Path(query["host"][0]) / f".s.PGSQL.{port}")
        return await anyio.connect_tcp(self._target.hostname or "localhost", self._target.port or 5432)

    def take_marked(self, data: bytes) -> bool:
        """Whether this is the message to cut at."""
        if self._marker is None or self._marker not in data:
            return False
        self._count -= 1
        if self._count:
            return False
        self._marker = None
        return True

    @property
    def marked_arrives(self) -> bool:
        """Whether that message reaches the server."""
        return self._marked_arrives


class _Link:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, client: ByteStream, server: ByteStream) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._scope = anyio.CancelScope()
        self._requests, self._answers = _Gate(), _Gate()
        self._is_cut = False
        self._under_way = b""
        self.listens = False

    async def run(self) -> None:
        with self._scope:
            async with anyio.create_task_group() as group:
                group.start_soon(self._pass_requests)
                group.start_soon(self._pass_answers)

    def hold(self, requests: bool, answers: bool) -> None:
        self._requests.close(requests)
        self._answers.close(answers)

    def cut(self) -> None:
        self._scope.cancel()

    async def deliver(self) -> None:
        data, self._under_way = self._under_way, b""
        if data:
            with suppress(*ENDED):
                await self._server.send(data)

    async def _pass_requests(self) -> None:
        with suppress(*ENDED):
            while True:
                data = await self._client.receive()
                self.listens = self.listens or b"LISTEN " in data
                await self._pass(self._requests, len(data))
                if self._proxy.take_marked(data):
                    if not self._proxy.marked_arrives:
                        await self._cut_off_client(data)
                    self._is_cut = True  # before it is sent: its answer must not slip through
                await self._server.send(data)
        self.cut()

    async def _pass(self, gate: "_Gate", size: int) -> None:
        if later := self._proxy.delay + size / self._proxy.rate:
            await anyio.sleep(later)
        await gate.passage()

    async def _cut_off_client(self, data: bytes) -> None:
        self._proxy.cuts += 1
        self._under_way = data
        await self._client.aclose()
        await anyio.sleep_forever()

    async def _pass_answers(self) -> None:
        with suppress(*ENDED):
            while True:
                data = await self._server.receive()
                await self._pass(self._answers, len(data))
                if self._is_cut:  # the server has answered, so it has done what it was asked
                    self._proxy.cuts += 1
                    break
                await self._client.send(data)
        self.cut()


class _Gate:
    """Lets pass, unless it is closed."""

    def __init__(self) -> None:
        self._open = anyio.Event()
        self._open.set()

    def close(self, closed: bool) -> None:
        if not closed:
            self._open.set()
        elif self._open.is_set():
            self._open = anyio.Event()

    async def passage(self) -> None:
        await self._open.wait()
