"""A process of the demo, which lives no longer than the demo."""

import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.abc import Process

from eventflow.clock import Clock
from eventflow.demo.errors import DemoError

STOP_SECONDS = 4.0
SHOWN_LOG_LINES = 12


class DemoProcess:
    """
    ``python -m eventflow.demo.<module>``, told to end by closing its standard input.

    That happens too when the demo is killed. The process is in a session of its own: Ctrl-C is for the demo.
    """

    def __init__(self, process: Process, name: str, log_path: Path) -> None:
        self._process = process
        self._name = name
        self._log_path = log_path

    @classmethod
    @asynccontextmanager
    async def start(
        cls, module: str, *arguments: str, dsn: str, directory: Path, clock: Clock
    ) -> AsyncGenerator["DemoProcess"]:
        """
        Run the module while the block lasts.

        Args:
            module: Its name in this package.
            arguments: Of its command line.
            dsn: Handed on in the environment, where nobody else sees it.
            directory: Gets the log.
            clock: Measures how long it may take to end.
        """
        log_path = directory / f"{module}-{clock.monotonic()}.log"
        with log_path.open("wb") as log:
            process = await anyio.open_process(
                [sys.executable, "-m", f"eventflow.demo.{module}", *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"EVENTFLOW_DSN": dsn},
                start_new_session=True,
            )
        try:
            yield cls(process, module, log_path)
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process, clock)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended in good order; raises what :meth:`check` raises."""
        self.check()
        return self._process.returncode is not None

    def check(self) -> None:
        """
        Make sure that it has not failed.

        Raises:
            DemoError: it has.
        """
        status = self._process.returncode
        if status:
            raise DemoError(f"the {self._name} process ended with status {status}:\n{self._last_words()}")

    async def kill(self) -> None:
        """End it with SIGKILL, which it cannot notice."""
        self._process.kill()
        await self._process.wait()

    def _last_words(self) -> str:
        lines = self._log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-SHOWN_LOG_LINES:])


async def _end(process: Process, clock: Clock) -> None:
    if process.stdin is not None:
        await process.stdin.aclose()
    with clock.deadline(STOP_SECONDS):
        await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()
