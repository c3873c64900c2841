"""Starts commands as a user does: real processes, whose exit codes and words are looked at."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from eventflow import EventFlow, Job, JobContext, JobId
from tests.support.waiting import until

COMMAND = str(Path(sys.executable).with_name("eventflow"))
SECONDS = 20.0
"""No command here takes longer, on however busy a machine."""
ENDED_AT_ONCE = 128 + signal.SIGTERM
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, or needs the death signal")

flow = EventFlow("shop")  # schedules what the workers of these tests run


@flow.job
class Work(Job):
    seconds: float = 0

    async def execute(self, context: JobContext) -> None: ...


@flow.job
class Stubborn(Job):
    async def execute(self, context: JobContext) -> None: ...


@flow.job
class Blocking(Job):
    async def execute(self, context: JobContext) -> None: ...


SHOP = """
    import asyncio, logging, os, time
    from eventflow import EventFlow, Job, JobContext

    log = logging.getLogger("shop")
    flow = EventFlow("shop")

    @flow.job
    class Work(Job):
        seconds: float = 0

        async def execute(self, context: JobContext) -> None:
            log.info("working", extra={"for": self.seconds})
            await asyncio.sleep(self.seconds)
            log.info("worked")

    @flow.job
    class Stubborn(Job):
        async def execute(self, context: JobContext) -> None:
            log.info("working")
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    log.info("not impressed")

    @flow.job
    class Blocking(Job):
        async def execute(self, context: JobContext) -> None:
            log.info("working")
            time.sleep(60)
"""


class Process:
    """A command that runs; what it says is in files."""

    def __init__(self, arguments: Sequence[str], directory: Path, environment: dict[str, str]) -> None:
        number = len(list(directory.glob("*.out")))
        self._out, self._err = directory / f"{number}.out", directory / f"{number}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, cwd=directory
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    async def says(self, text: str, times: int = 1) -> None:
        """Wait until it has said so."""

        def said() -> bool:
            heard = (self.out + self.err).count(text) >= times
            assert heard or self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.out}{self.err}"
            return heard

        said.__qualname__ = f"{text!r} of {self.process.args}"
        await until(said, within=SECONDS)

    async def stopped_by(self, *signals: signal.Signals) -> int:
        """Send the first signal, and the second as an impatient person does; returns the exit code."""
        self.process.send_signal(signals[0])
        if len(signals) > 1:
            await self.says("process.stopping")

            def again() -> bool:
                self.process.send_signal(signals[1])
                return self.process.poll() is not None

            await until(again, within=SECONDS)
        return await self.ended()

    async def ended(self) -> int:
        """Its exit code."""
        await until(lambda: self.process.poll() is not None, within=SECONDS)
        return self.process.wait()


class CommandLine:
    """
    Starts commands, in a directory that holds the module ``shop``.

    Attributes:
        directory: Where they run.
        environment: What they are given.
    """

    def __init__(self, directory: Path, dsn: str) -> None:
        self.directory = directory
        self.environment = {**os.environ, "EVENTFLOW_DSN": dsn}
        self.processes: list[Process] = []

    def start(self, *arguments: str, **environment: str) -> Process:
        process = Process(arguments, self.directory, self.environment | environment)
        self.processes.append(process)
        return process

    def worker(
        self, *options: str, target: str = "shop:flow", grace: float = 0.3, clean_up: float = 5, **environment: str
    ) -> Process:
        """``eventflow worker``, with short periods."""
        periods = (f"--grace-period={grace}", f"--clean-up-period={clean_up}")
        return self.start("worker", target, *periods, *options, **environment)

    async def run(self, *arguments: str, **environment: str) -> Process:
        """A command that ends by itself."""
        process = self.start(*arguments, **environment)
        await process.ended()
        return process

    def write(self, module: str, source: str) -> None:
        (self.directory / f"{module}.py").write_text(textwrap.dedent(source))


async def schedule(dsn: str, *jobs: Job, queue: str | None = None, delay: timedelta | None = None) -> list[JobId]:
    """Schedule these jobs as a program of the user would."""
    async with flow.open(dsn) as app:
        return [await app.jobs.schedule(job, queue=queue or "default", delay=delay) for job in jobs]
