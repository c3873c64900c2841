"""``eventflow worker --processes N``: starts worker processes, and replaces those that die."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Protocol

import anyio

from eventflow.cli.address import ADDRESS, LISTEN_ADDRESS
from eventflow.cli.exits import ExitCode
from eventflow.cli.signals import StopSignals
from eventflow.cli.worker import WorkerOptions
from eventflow.clock import Clock, SystemClock
from eventflow.supervision import background_tasks

log = logging.getLogger("eventflow.cli")

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
SETTLED_SECONDS = 30.0
"""A process that lived so long is replaced as if it were the first to die."""
LAST_SECONDS = 5.0
"""How much longer than its own deadline a process may take to end before it is killed."""

_HOPELESS = (ExitCode.FAILED, ExitCode.USAGE)
_IN_GOOD_ORDER = (ExitCode.DONE, -signal.SIGTERM)  # the latter: before it could even listen to signals


class Child(Protocol):
    """A process, as far as its supervisor is concerned."""

    @property
    def pid(self) -> int: ...
    async def wait(self) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Supervisor:
    """
    Keeps a number of processes alive until stopped.

    A process that ends with an error that is the same for all (definitions, schema, usage) ends all of them.

    Args:
        start: Starts one.
        processes: How many.
        clock: Measures lives and pauses.
        rng: Source of jitter.
    """

    def __init__(self, start: Callable[[], Awaitable[Child]], *, processes: int, clock: Clock, rng: Random) -> None:
        self._start = start
        self._processes = processes
        self._clock = clock
        self._rng = rng
        self._children: set[Child] = set()
        self._stop = anyio.Event()
        self._code: int = ExitCode.DONE

    def stop(self) -> None:
        """Let the processes stop in good order."""
        self._stop.set()
        for child in self._children:
            _tell(child.terminate)

    def kill(self) -> None:
        """End them at once; can be called by any thread."""
        for child in tuple(self._children):
            _tell(child.kill)

    async def run(self) -> int:
        """Run until all have ended after :meth:`stop`, or for one that cannot go on; returns the exit code."""
        log.info("supervisor.started", extra={"processes": self._processes})
        async with background_tasks() as group:
            for _ in range(self._processes):
                group.start_soon(self._keep_one)
        log.info("supervisor.stopped", extra={"code": self._code})
        return self._code

    async def _keep_one(self) -> None:
        deaths = 0
        while not self._stop.is_set():
            started_at = self._clock.monotonic()
            code = await self._run_one()
            if self._stop.is_set():
                self._judge(code)
            elif code is not None and code in _HOPELESS:
                log.error("process.failed", extra={"code": code})
                self._code = code
                self.stop()
            else:
                lived = self._clock.monotonic() - started_at
                deaths = 1 if lived >= SETTLED_SECONDS else deaths + 1
                pause = self._pause(deaths)
                log.warning(
                    "process.died", extra={"code": code, "lived_seconds": round(lived, 1), "pause": round(pause, 2)}
                )
                with self._clock.deadline(pause):
                    await self._stop.wait()

    async def _run_one(self) -> int | None:
        """Its exit code, negative for a signal; ``None``: it could not be started."""
        try:
            child = await self._start()
        except OSError as exc:  # no memory, too many processes
            log.warning("process.not_started", extra={"error": str(exc)})
            return None
        log.info("process.started", extra={"child": child.pid})
        self._children.add(child)
        if self._stop.is_set():
            _tell(child.terminate)
        try:
            return await child.wait()
        finally:
            self._children.discard(child)

    def _judge(self, code: int | None) -> None:
        if code is not None and code not in _IN_GOOD_ORDER and self._code == ExitCode.DONE:
            self._code = code if code > 0 else ExitCode.FORCED

    def _pause(self, deaths: int) -> float:
        longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(deaths - 1, 30))
        return longest * self._rng.uniform(0.5, 1.0)


def _tell(signal_it: Callable[[], None]) -> None:
    with suppress(ProcessLookupError):  # it has ended, and nobody has been told yet
        signal_it()


def child_command(target: str, schema: str, options: WorkerOptions) -> Sequence[str]:
    """The command line of one worker process; -P as it is the console script's idea of ``sys.path``."""
    return (
        sys.executable, "-P", "-m", "eventflow", "worker", target, f"--schema={schema}",
        *options.arguments(), f"--supervised-by={os.getpid()}",
    )  # fmt: skip


def supervise(target: str, dsn: str, *, listen_dsn: str | None, schema: str, options: WorkerOptions) -> int:
    """Run the worker in several processes until a signal comes; returns the exit code."""
    environment = os.environ | {ADDRESS: dsn} | ({LISTEN_ADDRESS: listen_dsn} if listen_dsn else {})
    command = child_command(target, schema, options)

    async def start() -> Child:
        # A session of its own: Ctrl-C is for the supervisor, who asks each child once.
        return await anyio.open_process(
            command, stdin=subprocess.DEVNULL, stdout=None, stderr=None, env=environment, start_new_session=True
        )

    within = options.grace_period + options.clean_up_period + LAST_SECONDS

    supervisor = Supervisor(start, processes=options.processes, clock=SystemClock(), rng=Random())
    signals = StopSignals(within=within, at_the_end=supervisor.kill)

    async def run() -> int:
        signals.call(supervisor.stop, within=within)
        return await supervisor.run()

    signals.install()
    try:
        return asyncio.run(run())
    finally:
        signals.ignore()
