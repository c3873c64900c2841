"""A server, and processes that each reach it through a proxy of their own."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import asyncpg
import msgspec
from anyio.abc import TaskGroup, TaskStatus

from eventflow.devdb import EmbeddedPostgres, cached_template
from eventflow.postgres import Connection, migrate
from reliability.rig.application import DIRECTORY, IS_OLD, NAME
from reliability.rig.proxy import Proxy
from reliability.rig.transitions import Transitions
from reliability.scenario import SETTINGS, Ask, WorkerPlan

ROOT = Path(__file__).parents[2]


class World:
    """
    What a schedule plays in.

    Attributes:
        server: Postgres, durable.
        dsn: Its address, past all proxies.
        directory: Diaries and logs.
        transitions: Every change of a job.
        group: What goes on in it; cancelled at its end.
    """

    def __init__(self, server: EmbeddedPostgres, directory: Path, group: TaskGroup) -> None:
        self.server = server
        self.dsn = server.dsn()
        self.directory = directory
        self.transitions = Transitions(self.dsn)
        self.group = group

    @classmethod
    @asynccontextmanager
    async def open(cls, directory: Path) -> AsyncGenerator["World"]:
        """A server with eventflow's tables; must be called in the main thread, whose end is the server's."""
        server = EmbeddedPostgres(directory / "postgres", template=cached_template())
        server.start()
        try:
            async with anyio.create_task_group() as group:
                world = cls(server, directory, group)
                async with world.admin() as admin:
                    await migrate(admin)
                await world.transitions.install()
                yield world
                group.cancel_scope.cancel()
        finally:
            server.stop("immediate")

    @asynccontextmanager
    async def admin(self) -> AsyncGenerator[Connection]:
        """A superuser's connection, past all proxies."""
        connection: Connection = await asyncpg.connect(self.dsn)
        try:
            yield connection
        finally:
            connection.terminate()

    async def proxy(self) -> tuple[Proxy, str]:
        """A proxy for one process, and the address of the database through it."""
        proxy = Proxy(self.dsn)
        return proxy, await self.group.start(_serve, proxy)


async def _serve(proxy: Proxy, *, task_status: TaskStatus[str]) -> None:
    async with proxy.serve() as dsn:
        task_status.started(dsn)
        await anyio.sleep_forever()


class RealProcess:
    """
    A worker or producer of its own.

    Attributes:
        name: In histories.
        proxy: Between it and the server.
        stop_asked_at: Monotonic seconds.
        asked: Numbers of the calls that it was to make.
    """

    def __init__(self, name: str, proxy: Proxy, process: "subprocess.Popen[bytes]") -> None:
        self.name = name
        self.proxy = proxy
        self.process = process
        self.stop_asked_at: float | None = None
        self.asked: set[int] = set()

    @property
    def runs(self) -> bool:
        """It has not ended."""
        return self.process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """A signal, if it still runs."""
        if self.runs:
            self.process.send_signal(number)

    def stop(self) -> None:
        """Ask it to end in good order: a worker by SIGTERM, a producer by the end of its input."""
        self.stop_asked_at = time.monotonic()
        if self.is_producer and self.process.stdin is not None:
            self.process.stdin.close()
        else:
            self.send(signal.SIGTERM)

    @property
    def is_producer(self) -> bool:
        """It makes calls."""
        return self.name.startswith("producer")

    def ask(self, ask: Ask) -> None:
        """Have a producer make a call."""
        if self.runs and self.process.stdin is not None:
            self.process.stdin.write(msgspec.json.encode(ask) + b"\n")
            self.process.stdin.flush()
            if ask.what not in ("cancel", "move"):
                self.asked.add(ask.number)

    async def ended(self) -> int:
        """Its exit code, as soon as there is one."""
        while self.process.poll() is None:
            await anyio.sleep(0.01)
        return self.process.returncode


async def start_worker(world: World, name: str, plan: WorkerPlan) -> RealProcess:
    """``eventflow worker``, as users start it."""
    options = [
        f"--concurrency={plan.concurrency}",
        f"--heartbeat-interval={SETTINGS.heartbeat_interval}",
        f"--fence-after={SETTINGS.fence_after}",
        f"--lease-duration={SETTINGS.lease_duration}",
        f"--grace-period={SETTINGS.grace_period}",
    ]
    command = ["-m", "eventflow", "worker", "reliability.rig.application:flow", *options]
    return await _start(world, name, command, **({} if plan.is_new else {IS_OLD: "1"}))


async def start_producer(world: World, name: str) -> RealProcess:
    """A process that makes the calls it is given."""
    return await _start(world, name, ["-m", "reliability.rig.producer"])


async def _start(world: World, name: str, command: Sequence[str], **environment: str) -> RealProcess:
    proxy, dsn = await world.proxy()
    about = {"EVENTFLOW_DSN": dsn, DIRECTORY: str(world.directory), NAME: name}
    return RealProcess(name, proxy, _popen(command, {**about, **environment}, world.directory / f"{name}.log"))


def _popen(command: Sequence[str], environment: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=stream,
        )


async def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for something, so long at most; whether it came."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            return False
        await anyio.sleep(0.02)
    return True
