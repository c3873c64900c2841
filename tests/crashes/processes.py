"""Processes to kill: real ones, forked from one that has imported everything, so that hundreds of them cost little."""

import asyncio
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from eventflow import WorkerSettings, failpoints
from eventflow.cli.app import run
from tests.crashes.application import flow

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload([__name__, "uvloop", "eventflow.cli.logs", "eventflow.cli.worker"])

LISTENING = "SELECT true FROM eventflow.worker WHERE pid = $1 AND session_key IS NOT NULL"


class ForkedProcess:
    """
    A process to kill; its log is a file.

    Args:
        main: What it runs, in its main thread.
        arguments: For *main*.
        failpoints: As in ``EVENTFLOW_FAILPOINTS``.
    """

    def __init__(
        self, main: Callable[..., None], *arguments: object, dsn: str, log: Path, failpoints: str = ""
    ) -> None:
        self._log = log
        self._process = forks.Process(target=_begin, args=(dsn, str(log), failpoints, main, arguments))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def exit_code(self) -> int | None:
        """``None``: it has not ended."""
        return self._process.exitcode

    async def stands(self) -> bool:
        """Whether it stands still, at a failpoint."""
        if self.exit_code is not None:
            raise AssertionError(f"the process ended with {self.exit_code}:\n{self._log.read_text()}")
        state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "T"

    def resume(self) -> None:
        """Let it go on from where it stands still; it does not when this returns."""
        os.kill(self.pid, signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM."""
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        self._process.kill()
        self._process.join()

    def close(self) -> None:
        """:meth:`kill`, and forget it."""
        self.kill()
        self._process.close()


def command_line(*options: str) -> None:
    """``eventflow worker``, as a user starts it."""
    sys.exit(run(["worker", "tests.crashes.application:flow", *options]))


def embedded(settings: WorkerSettings) -> None:
    """A worker within a process of the application's own, which can set more than the command line."""

    async def main() -> None:
        async with flow.open() as app, app.worker(settings):
            await asyncio.Event().wait()

    asyncio.run(main())


def producer(schedule: Callable[[], Awaitable[None]]) -> None:
    """Calls a coroutine function."""
    asyncio.run(_awaited(schedule))


async def _awaited(function: Callable[[], Awaitable[None]]) -> None:
    await function()


def _begin(dsn: str, log: str, armed: str, main: Callable[..., None], arguments: tuple[object, ...]) -> None:
    _die_with_parent()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ["EVENTFLOW_DSN"] = dsn
    failpoints.arm(armed)
    main(*arguments)


def _die_with_parent() -> None:
    """Nothing outlives a test run that is itself killed."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL))
