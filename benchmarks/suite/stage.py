"""A contestant in a fresh database, and its processes."""

import asyncio
import json
import mmap
import os
import signal
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg

from benchmarks.contestants.entry import ROOT, Entry
from eventflow.postgres import Connection

READY_SECONDS = 60.0
STOP_SECONDS = 20.0
TICKS = os.sysconf("SC_CLK_TCK")


class ContestantError(Exception):
    """A contestant's program failed; the text is the end of what it said."""


class WorkerProcess:
    """
    A worker.

    Attributes:
        result: What it told when it stopped; empty: it did not stop by itself.
    """

    def __init__(self, process: Process, counter: Path, result: Path, errors: Path) -> None:
        self.result: dict[str, Any] = {}
        self._process = process
        self._result = result
        self._errors = errors
        with counter.open("rb") as file:
            self._shown = memoryview(mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)).cast("q")

    @property
    def started(self) -> int:
        """Jobs that it has started so far."""
        return self._shown[0]

    def cpu_seconds(self) -> float:
        """Processor time that it has used."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    async def loaded(self) -> None:
        """
        Its program is there, and has not begun.

        Raises:
            ContestantError: it ended, or takes too long.
        """
        await self._says(b"loaded")

    def begin(self) -> None:
        """Let it work."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"begin\n")

    async def ready(self) -> None:
        """It works. Raises as above."""
        await self._says(b"ready")

    async def _says(self, word: bytes) -> None:
        assert self._process.stdout is not None
        line = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(READY_SECONDS):
                while (line := await self._process.stdout.readline()) and line.strip() != word:
                    pass
        if not line:
            raise ContestantError(self._errors.read_text(errors="replace")[-2000:] or f"not {word.decode()} in time")

    async def stop(self) -> None:
        """Let it end, and take what it tells."""
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.communicate(b"")
            self.result = json.loads(self._result.read_bytes())
        except (TimeoutError, OSError):
            await _kill(self._process)


class Stage:
    """
    Where a contestant plays.

    Args:
        entry: The contestant.
        python: The interpreter of its environment.
        address: Of its database, or Redis.
        database: Of a fresh Postgres database; also for those who play elsewhere.
        directory: For files.

    Attributes:
        entry: The contestant; a measure may let it play another way.
    """

    def __init__(self, entry: Entry, python: Path, address: str, database: Connection, directory: Path) -> None:
        self.entry = entry
        self.database = database
        self.directory = directory
        self._python = python
        self._address = address
        self._workers = 0

    async def set_up(self) -> None:
        """Make its tables."""
        await self._play("set_up", {})

    async def produce(self, how: str, **spec: Any) -> dict[str, Any]:
        """Run a producer to its end; see ``benchmarks.contestants.__main__``."""
        return await self._play("produce", {"how": how, **spec})

    async def call(self, function: str, *, loop: str = "uvloop", **options: Any) -> dict[str, float]:
        """The figures that a function, ``module:name``, takes by itself, in a process of this environment."""
        return await self._play("call", {"loop": loop, "options": options}, way=function)

    @asynccontextmanager
    async def supervisor(self, flow: str, *options: str, **variables: str) -> AsyncGenerator[Process]:
        """
        An ``eventflow worker`` that keeps several processes, until the block ends.

        Args:
            flow: ``module:name``.
            *options: Of the command.
            **variables: Of its environment.
        """
        process = await self._start(("eventflow", "worker", flow, *options), EVENTFLOW_DSN=self._address, **variables)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()  # killed, it could not wait for its own
            await process.communicate()

    @asynccontextmanager
    async def workers(
        self, number: int = 1, *, begin: bool = True, way: str | None = None, **spec: Any
    ) -> AsyncGenerator[Sequence[WorkerProcess]]:
        """
        So many processes, all ready; each has its result when the block has ended.

        Args:
            number: How many.
            begin: Let them work; without it they wait for :meth:`WorkerProcess.begin`, all at the same point.
            way: The class that works, ``module:name``; ``None``: the contestant's.
            **spec: What they do; see ``benchmarks.contestants.__main__``.
        """
        async with AsyncExitStack() as stack:
            workers: list[WorkerProcess] = []
            for _ in range(number):
                workers.append(await self._start_worker(spec, way))
                stack.push_async_callback(workers[-1].stop)
            for worker in workers:
                await worker.loaded()
            if begin:
                for worker in workers:
                    worker.begin()
                for worker in workers:
                    await worker.ready()
            yield workers

    async def unfinished(self) -> int:
        """Jobs whose end is not durable."""
        assert self.entry.unfinished is not None
        return int(await self.database.fetchval(self.entry.unfinished))

    async def count_statements(self) -> int:
        """Statements on the server since they were last forgotten, but our own."""
        return int(
            await self.database.fetchval(
                "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements AS s JOIN pg_database AS d ON d.oid = s.dbid"
                " WHERE d.datname = current_database() AND query NOT LIKE '%pg_stat_statements%'"
            )
        )

    async def forget_statements(self) -> None:
        """Count anew."""
        await self.database.execute("SELECT pg_stat_statements_reset()")

    async def written_bytes(self) -> int:
        """Of WAL, by the whole server, so far."""
        return int(await self.database.fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))

    def failure(self) -> ContestantError:
        """Of a program that has failed: with the end of what it said."""
        return ContestantError((self.directory / "errors").read_text(errors="replace")[-2000:])

    async def _start_worker(self, spec: dict[str, Any], way: str | None) -> WorkerProcess:
        self._workers += 1
        counter = self.directory / f"started-{self._workers}"
        counter.write_bytes(bytes(8))
        result = self.directory / f"result-{self._workers}"
        process = await self._start_role("work", {"counter": str(counter), "result": str(result), **spec}, way=way)
        return WorkerProcess(process, counter, result, self.directory / "errors")

    async def _play(self, role: str, spec: dict[str, Any], *, way: str | None = None) -> dict[str, Any]:
        path = self.directory / "result"
        process = await self._start_role(role, {"result": str(path), **spec}, way=way)
        try:
            await process.communicate()
        finally:
            await _kill(process)  # if the cell took too long: nothing of it runs on beside the next
        if process.returncode:
            raise self.failure()
        result: dict[str, Any] = json.loads(path.read_bytes())
        return result

    async def _start_role(self, role: str, spec: dict[str, Any], *, way: str | None = None) -> Process:
        arguments = (way or self.entry.way, role, self._address, json.dumps(spec))
        return await self._start(("benchmarks.contestants", *arguments))

    async def _start(self, module: Sequence[str], **variables: str) -> Process:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("EVENTFLOW_")},
            "PYTHONPATH": str(ROOT),
            **variables,
        }
        with (self.directory / "errors").open("ab") as errors:
            return await asyncio.create_subprocess_exec(
                *(str(self._python), "-m", *module),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                cwd=self.directory,
                env=environment,
                start_new_session=True,
            )


async def _kill(process: Process) -> None:
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


@asynccontextmanager
async def stage(entry: Entry, python: Path, address: str, dsn: str) -> AsyncGenerator[Stage]:
    """A stage with the contestant's tables; nothing of it is left."""
    with tempfile.TemporaryDirectory(prefix="eventflow-bench-") as directory:
        database: Connection = await asyncpg.connect(dsn)
        try:
            placed = Stage(entry, python, address, database, Path(directory))
            await placed.set_up()
            yield placed
        finally:
            await database.close()
