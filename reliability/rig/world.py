"""Servers, and processes that each reach the primary through a proxy of their own."""

import os
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from subprocess import PIPE, Popen

import anyio
import asyncpg
from anyio.abc import TaskGroup, TaskStatus

from eventflow.jobs.worker import WorkerSettings
from eventflow.postgres import Connection, migrate
from reliability.faults import Fault
from reliability.rig import application, ledger
from reliability.rig.clocks import skewed
from reliability.rig.ledger import Ledger
from reliability.rig.pooler import PgBouncer, pgbouncer
from reliability.rig.processes import RealProcess
from reliability.rig.proxy import Proxy
from reliability.rig.servers import APP, Servers
from reliability.rig.transitions import Transitions
from reliability.scenario import RECOVERY_SECONDS, SETTINGS, Scenario, WorkerPlan

ROOT = Path(__file__).parents[2]
LOOKS = 10
"""At the two clocks; in between others may have had the processor."""
FAILPOINTS = "EVENTFLOW_FAILPOINTS"
CREATE_APP = f"CREATE ROLE {APP} LOGIN IN ROLE eventflow_worker"


class World:
    """
    What a schedule plays in.

    Attributes:
        servers: Postgres, durable.
        directory: Diaries and logs.
        ledger: In another server.
        group: What goes on in it; cancelled at its end.
    """

    def __init__(
        self, servers: Servers, directory: Path, books: Ledger, settings: WorkerSettings, group: TaskGroup
    ) -> None:
        self.servers = servers
        self.directory = directory
        self.ledger = books
        self.group = group
        self._settings = settings
        self._proxies: list[Proxy] = []
        self._bouncer: PgBouncer | None = None
        self._wall_minus_monotonic = max(time.time() - time.monotonic() for _ in range(LOOKS))

    @classmethod
    @asynccontextmanager
    async def open(
        cls, scenario: Scenario, directory: Path, books: Ledger, settings: WorkerSettings = SETTINGS
    ) -> AsyncGenerator["World"]:
        """Servers with eventflow's tables; must be called in the main thread, whose end is theirs."""
        faults = {fault.fault for fault in scenario.faults}
        async with AsyncExitStack() as stack:
            servers = stack.enter_context(Servers.running(directory, faults))
            group = await stack.enter_async_context(anyio.create_task_group())
            world = cls(servers, directory, books, settings, group)
            async with world.admin() as admin:
                await migrate(admin)
                await admin.execute(CREATE_APP)
            await world.transitions.install()
            if Fault.PROMOTE in faults:
                await servers.replicate()
            if any(plan.is_pooled for plan in scenario.workers):
                world._bouncer = stack.enter_context(pgbouncer(await world._serve(world.app_dsn), pool_size=10))
            yield world
            group.cancel_scope.cancel()

    @property
    def transitions(self) -> Transitions:
        """Every change of a job."""
        return Transitions(self.servers.dsn)

    @asynccontextmanager
    async def admin(self) -> AsyncGenerator[Connection]:
        """A superuser's connection, past all proxies."""
        connection = await self._connect()
        try:
            yield connection
        finally:
            connection.terminate()

    @property
    def app_dsn(self) -> str:
        """The primary's address for the processes' role, past all proxies."""
        return self.servers.dsn.replace("postgres@", f"{APP}@", 1)

    async def ready(self) -> None:
        """Wait for the primary, which may be recovering from a crash."""
        deadline = time.monotonic() + RECOVERY_SECONDS
        while True:
            try:
                connection = await self._connect()
            except (OSError, asyncpg.CannotConnectNowError):
                if time.monotonic() > deadline:
                    raise
                await anyio.sleep(0.05)
            else:
                connection.terminate()
                return

    async def _connect(self) -> Connection:
        return await asyncpg.connect(self.servers.dsn)

    async def promote(self) -> None:
        """The primary dies, the standby takes its place, and all proxies lead there."""
        await self.servers.promote()
        for proxy in self._proxies:
            proxy.aim(self.app_dsn)
            proxy.reset()

    async def start_worker(self, plan: WorkerPlan, name: str, failpoints: str) -> RealProcess:
        """``eventflow worker``, as users start it."""
        options = [
            f"--concurrency={plan.concurrency}",
            f"--heartbeat-interval={self._settings.heartbeat_interval}",
            f"--fence-after={self._settings.fence_after}",
            f"--lease-duration={self._settings.lease_duration}",
            f"--grace-period={self._settings.grace_period}",
        ]
        environment = {FAILPOINTS: failpoints} | ({} if plan.is_new else {application.IS_OLD: "1"})
        if plan.ahead:
            environment |= skewed(plan.ahead)
        command = ["-m", "eventflow", "worker", "reliability.rig.application:flow", *options]
        return await self._start(name, command, environment, is_pooled=plan.is_pooled)

    async def start_producer(self, name: str, failpoints: str) -> RealProcess:
        """A process that makes the calls it is given."""
        return await self._start(name, ["-m", "reliability.rig.producer"], {FAILPOINTS: failpoints}, is_pooled=False)

    async def _start(
        self, name: str, command: Sequence[str], environment: dict[str, str], *, is_pooled: bool
    ) -> RealProcess:
        if is_pooled and self._bouncer is not None:
            proxy = Proxy(self._bouncer.dsn)
        else:
            proxy = Proxy(self.app_dsn)
            self._proxies.append(proxy)
        about = {
            "EVENTFLOW_DSN": await self.group.start(_serve, proxy),
            application.DIRECTORY: str(self.directory),
            application.NAME: name,
            application.WALL_MINUS_MONOTONIC: str(self._wall_minus_monotonic),
            ledger.DSN: self.ledger.dsn,
            ledger.RUN: self.ledger.run,
        }
        with (self.directory / f"{name}.log").open("wb") as log:
            process = Popen(  # noqa: ASYNC220 - it is waited for elsewhere
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, **about, **environment},
                stdin=PIPE,
                stdout=log,
                stderr=log,
            )
        return RealProcess(name, proxy, process)

    async def _serve(self, target: str) -> str:
        """The address of a server through a proxy that is in the way of several processes."""
        proxy = Proxy(target)
        self._proxies.append(proxy)
        return await self.group.start(_serve, proxy)


async def _serve(proxy: Proxy, *, task_status: TaskStatus[str]) -> None:
    async with proxy.serve() as dsn:
        task_status.started(dsn)
        await anyio.sleep_forever()


async def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for something, so long at most; whether it came."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await anyio.sleep(0.02)
    return True
