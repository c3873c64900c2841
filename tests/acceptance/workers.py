"""Real worker processes, started as a user starts them."""

import os
import signal
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.waiting import until

ROOT = Path(__file__).parents[2]
STARTED = "worker.started"


class WorkerProcess:
    """
    ``eventflow worker`` in a process of its own; its log is a file.

    Args:
        dsn: The database.
        log: Where its log goes.
        target: The flow that it runs.
        failpoints: ``EVENTFLOW_FAILPOINTS`` of the process.
        environment: More variables of the process.
        options: Further arguments of the command.
    """

    def __init__(
        self,
        dsn: str,
        log: Path,
        *options: str,
        target: str = "tests.acceptance.shop:flow",
        failpoints: str = "",
        environment: Mapping[str, str] = {},
    ) -> None:
        self.log = log
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "eventflow", "worker", target, *options],
                cwd=ROOT,
                env={**os.environ, "EVENTFLOW_DSN": dsn, "EVENTFLOW_FAILPOINTS": failpoints, **environment},
                stdout=stream,
                stderr=stream,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    async def started(self) -> "WorkerProcess":
        """Wait until it claims."""
        await until(lambda: STARTED in self.log.read_text() or self._failed())
        return self

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=40)

    def _failed(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the worker ended with {self.process.returncode}:\n{self.log.read_text()}")
        return False


class Crew:
    """The workers of one test; none outlives it."""

    def __init__(self, dsn: str, directory: Path, target: str) -> None:
        self._dsn = dsn
        self._target = target
        self._directory = directory
        self.workers: list[WorkerProcess] = []

    def add(self, *options: str, failpoints: str = "", environment: Mapping[str, str] = {}) -> WorkerProcess:
        """Start one more worker process."""
        log = self._directory / f"worker-{len(self.workers)}.log"
        worker = WorkerProcess(
            self._dsn, log, *options, target=self._target, failpoints=failpoints, environment=environment
        )
        self.workers.append(worker)
        return worker


@contextmanager
def crew(dsn: str, directory: Path, target: str = "tests.acceptance.shop:flow") -> Generator[Crew]:
    """Workers of a flow that are killed at the end, whatever happened."""
    workers = Crew(dsn, directory, target)
    try:
        yield workers
    finally:
        for worker in workers.workers:
            worker.kill()
