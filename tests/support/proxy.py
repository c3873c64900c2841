"""A TCP proxy before the server that loses answers."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit

import anyio
from anyio.abc import ByteStream, TaskGroup


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
        self.cuts = 0
        """Connections that were cut."""

    def cut_after(self, marker: bytes, *, passage: int = 1) -> None:
        """Once: let the message with this text reach the server, and cut its connection before the answer."""
        self._marker, self._count = marker, passage

    @asynccontextmanager
    async def serve(self) -> AsyncGenerator[str]:
        """Accept connections; gives the address to connect to."""
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        login = self._target.netloc.rpartition("@")[0]
        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, self._connect)
            yield urlunsplit(self._target._replace(netloc=f"{login}@127.0.0.1:{port}", query=""))
            group.cancel_scope.cancel()

    async def _connect(self, client: ByteStream) -> None:
        server = await self._open_server()
        async with client, server, anyio.create_task_group() as group:
            cut = anyio.Event()
            group.start_soon(self._pass_requests, client, server, cut, group)
            group.start_soon(self._pass_answers, server, client, cut, group)

    async def _open_server(self) -> ByteStream:
        hosts = parse_qs(self._target.query).get("host")
        if hosts:
            return await anyio.connect_unix(Path(hosts[0]) / ".s.PGSQL.5432")
        return await anyio.connect_tcp(self._target.hostname or "localhost", self._target.port or 5432)

    async def _pass_requests(self, source: ByteStream, sink: ByteStream, cut: anyio.Event, group: TaskGroup) -> None:
        try:
            while True:
                data = await source.receive()
                if self._is_marked(data):
                    cut.set()  # before it is sent: its answer must not slip through
                await sink.send(data)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            group.cancel_scope.cancel()

    async def _pass_answers(self, source: ByteStream, sink: ByteStream, cut: anyio.Event, group: TaskGroup) -> None:
        try:
            while True:
                data = await source.receive()
                if cut.is_set():  # the server has answered, so it has done what it was asked
                    self.cuts += 1
                    group.cancel_scope.cancel()
                    return
                await sink.send(data)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            group.cancel_scope.cancel()

    def _is_marked(self, data: bytes) -> bool:
        if self._marker is None or self._marker not in data:
            return False
        self._count -= 1
        if self._count:
            return False
        self._marker = None
        return True
