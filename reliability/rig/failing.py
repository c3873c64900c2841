"""Makes things fail."""

import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from random import Random
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any
from uuid import UUID

import anyio
import asyncpg
from anyio.abc import TaskGroup

from eventflow import JobId
from eventflow.ids import new_uuid
from eventflow.postgres import Connection
from reliability.faults import ON_THE_SERVER, Fault
from reliability.history import AnyEntry, Failed
from reliability.rig.crew import Crew
from reliability.rig.processes import RealProcess
from reliability.rig.servers import APP
from reliability.rig.world import World
from reliability.scenario import PlannedFault

GONE = (
    *(OSError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError),
    *(asyncpg.InsufficientResourcesError, asyncpg.ReadOnlySQLTransactionError),
)
"""What happens to our own connections, since something else fails too."""
REFUSED = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
MESSAGES = 12
"""An answer is lost within so many messages."""
SLOW_BYTES_PER_SECOND = 64_000
TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE $1"
TOO_SHORT = {
    "statement_timeout": "15ms",
    "lock_timeout": "5ms",
    "idle_in_transaction_session_timeout": "5ms",
    "idle_session_timeout": "300ms",
}
LOCK = (
    "SELECT FROM eventflow.job ORDER BY ready_at LIMIT 20 FOR UPDATE SKIP LOCKED",
    "SELECT FROM eventflow.running LIMIT 5 FOR UPDATE SKIP LOCKED",
)
FLOOD = """
SELECT pg_notify(channel, repeat(number::text, 1000))
FROM generate_series(1, 60) AS number, unnest(ARRAY['eventflow', 'others']) AS channel
"""
FLOOD_PAUSE = 0.01
SCRIBBLE = """
INSERT INTO eventflow.job (id, queue_id, due_at, ready_at, name, version, payload, headers, retry, attempt, crashes)
SELECT $1, coalesce((SELECT min(id) FROM eventflow.queue), 1), due, due, $2, $3, $4::json, $5::json, $6::json, $7, $8
FROM (SELECT clock_timestamp() + $9::integer * interval '1 ms') AS now (due)
"""
NAMES = ("Work", "News", "PublishCommand:Deposit", "Subscriber:statement", "PublishCommand:", "Nobody", "'; --")
PAYLOADS = (
    "{}",
    "null",
    "[]",
    '{"number": "one"}',
    '{"number": 1e400}',
    '{"number": -7, "nap": -1}',
    '{"a": "\\u0000"}',
)
HEADERS = (None, "[]", '{"correlation_id": 1}', '"\\ud800"')
RETRIES = (None, "{}", '{"max_attempts": -5}', '{"base_us": "x"}')


class Failures:
    """
    Carries out what is planned to fail, on what is there.

    Attributes:
        entries: What was made to fail, when.
        by_hand: Jobs that were written past the library.
    """

    def __init__(self, world: World, crew: Crew, rng: Random) -> None:
        self._world = world
        self._crew = crew
        self._rng = rng
        self._one_at_a_time = anyio.Lock()  # of what starts and ends servers
        self.entries: list[AnyEntry] = []
        self.by_hand: set[JobId] = set()

    async def begin(self, planned: PlannedFault, group: TaskGroup) -> None:
        """Let it fail from now on, for its time."""
        if planned.fault is Fault.CRASH:
            return  # at its first start
        process = self._crew.seats[planned.target].process
        target = "server" if planned.fault in ON_THE_SERVER else process.name
        self.entries.append(Failed(time.monotonic(), planned.fault.value, target, planned.seconds))
        group.start_soon(_FAILURES[planned.fault], self, process, planned)

    async def heal(self) -> None:
        """Nothing fails any more."""
        servers = self._world.servers
        async with self._one_at_a_time:
            if servers.disk is not None:
                servers.disk.free()
            servers.start()
            await self._world.ready()
        if servers.clock is not None:
            servers.clock.set(servers.clock.furthest_ahead)  # what was due then must come
        async with self._world.admin() as admin:
            await admin.execute(f"ALTER ROLE {APP} RESET ALL")
        for process in self._crew.processes.values():
            process.send(SIGCONT)
            process.proxy.disarm()
            process.proxy.release()
            process.proxy.delay, process.proxy.rate = 0.0, float("inf")
            process.proxy.refuse(False)

    # Of processes

    async def _kill(self, process: RealProcess, planned: PlannedFault) -> None:
        process.send(SIGKILL)

    async def _freeze(self, process: RealProcess, planned: PlannedFault) -> None:
        process.send(SIGSTOP)
        await anyio.sleep(planned.seconds)
        process.send(SIGCONT)

    async def _stop(self, process: RealProcess, planned: PlannedFault) -> None:
        if process.stop_asked_at is None:
            process.stop()

    async def _cut(self, process: RealProcess, planned: PlannedFault) -> None:
        process.proxy.hold()
        await anyio.sleep(planned.seconds)
        process.proxy.release()

    async def _reset(self, process: RealProcess, planned: PlannedFault) -> None:
        process.proxy.reset()

    async def _slow(self, process: RealProcess, planned: PlannedFault) -> None:
        process.proxy.delay, process.proxy.rate = 0.001 * planned.amount, SLOW_BYTES_PER_SECOND
        await anyio.sleep(planned.seconds)
        process.proxy.delay, process.proxy.rate = 0.0, float("inf")

    async def _refuse(self, process: RealProcess, planned: PlannedFault) -> None:
        process.proxy.refuse(True)
        await anyio.sleep(planned.seconds)
        process.proxy.refuse(False)

    async def _lose(self, process: RealProcess, planned: PlannedFault) -> None:
        """Of some message the answer; which one, depends on the seed."""
        process.proxy.cut_after(b"", passage=1 + planned.amount % MESSAGES)

    async def _deafen(self, process: RealProcess, planned: PlannedFault) -> None:
        await self._execute(TERMINATE, f"eventflow listen {process.pid}")

    async def _terminate(self, process: RealProcess, planned: PlannedFault) -> None:
        await self._execute(TERMINATE, f"eventflow % {process.pid}")

    # Of the server

    async def _restart(self, process: RealProcess, planned: PlannedFault) -> None:
        async with self._one_at_a_time:
            self._world.servers.crash()
            await anyio.sleep(planned.seconds)
            self._world.servers.start()

    async def _promote(self, process: RealProcess, planned: PlannedFault) -> None:
        async with self._one_at_a_time:
            await self._world.promote()

    async def _set_clock(self, process: RealProcess, planned: PlannedFault) -> None:
        clock = self._world.servers.clock
        if clock is not None:
            clock.set(clock.ahead + planned.seconds)

    async def _fill_disk(self, process: RealProcess, planned: PlannedFault) -> None:
        servers = self._world.servers
        if servers.disk is not None:
            servers.disk.fill()
            await anyio.sleep(planned.seconds)
            servers.disk.free()
            async with self._one_at_a_time:
                servers.start()

    async def _limit(self, process: RealProcess, planned: PlannedFault) -> None:
        for setting, value in TOO_SHORT.items():
            await self._execute(f"ALTER ROLE {APP} SET {setting} = '{value}'")
        await self._execute(TERMINATE, "eventflow %")
        await anyio.sleep(planned.seconds)
        await self._execute(f"ALTER ROLE {APP} RESET ALL")

    async def _exhaust(self, process: RealProcess, planned: PlannedFault) -> None:
        async with AsyncExitStack() as others:
            with suppress(*GONE):
                while True:
                    connection: Connection = await asyncpg.connect(self._world.app_dsn)
                    others.callback(connection.terminate)
            process.proxy.reset()
            await anyio.sleep(planned.seconds)

    async def _hold(self, process: RealProcess, planned: PlannedFault) -> None:
        with suppress(*GONE):
            async with self._world.admin() as admin:
                await admin.execute("BEGIN")
                for statement in LOCK:
                    await admin.execute(statement)
                await anyio.sleep(planned.seconds)

    async def _flood(self, process: RealProcess, planned: PlannedFault) -> None:
        until = time.monotonic() + planned.seconds
        with suppress(*GONE):
            async with self._world.admin() as deaf, self._world.admin() as loud:
                await deaf.execute("LISTEN others")
                await deaf.execute("BEGIN; SELECT 1")
                while time.monotonic() < until:
                    with suppress(asyncpg.ProgramLimitExceededError, asyncpg.ObjectNotInPrerequisiteStateError):
                        await loud.execute(FLOOD)  # the queue may be full
                    await anyio.sleep(FLOOD_PAUSE)

    async def _scribble(self, process: RealProcess, planned: PlannedFault) -> None:
        rng = self._rng
        for _ in range(10):
            job_id = JobId.of(new_uuid())
            self.by_hand.add(job_id)
            with suppress(*REFUSED):  # the tables do not take everything
                await self._execute(
                    *(SCRIBBLE, UUID(job_id.uuid), rng.choice(NAMES), rng.choice((1, 1, 99)), rng.choice(PAYLOADS)),
                    *(rng.choice(HEADERS), rng.choice(RETRIES), rng.choice((0, 3, 10**9)), rng.choice((0, 2, 10**9))),
                    rng.choice((-1000, 0, 100)),
                )

    async def _execute(self, statement: str, *args: object) -> None:
        """As a superuser, if that is possible."""
        with suppress(*GONE):
            async with self._world.admin() as admin:
                await admin.execute(statement, *args)


_FAILURES: dict[Fault, Callable[[Failures, RealProcess, PlannedFault], Coroutine[Any, Any, None]]] = {
    Fault.KILL: Failures._kill,
    Fault.FREEZE: Failures._freeze,
    Fault.STOP: Failures._stop,
    Fault.CUT: Failures._cut,
    Fault.RESET: Failures._reset,
    Fault.SLOW: Failures._slow,
    Fault.REFUSE: Failures._refuse,
    Fault.LOSE: Failures._lose,
    Fault.DEAFEN: Failures._deafen,
    Fault.TERMINATE: Failures._terminate,
    Fault.RESTART: Failures._restart,
    Fault.PROMOTE: Failures._promote,
    Fault.SET_CLOCK: Failures._set_clock,
    Fault.FILL_DISK: Failures._fill_disk,
    Fault.LIMIT: Failures._limit,
    Fault.EXHAUST: Failures._exhaust,
    Fault.HOLD: Failures._hold,
    Fault.FLOOD: Failures._flood,
    Fault.SCRIBBLE: Failures._scribble,
}
