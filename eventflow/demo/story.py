"""The demo from start to end."""

import signal
from collections.abc import Awaitable, Callable, Generator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import anyio
from rich.console import Console

from eventflow.clock import Clock, SystemClock
from eventflow.demo.errors import DemoError
from eventflow.demo.process import DemoProcess
from eventflow.demo.report import Figures, is_registered, read_figures, read_hands, read_progress
from eventflow.demo.statements import statement
from eventflow.demo.view import View, print_failure, print_figures, view_on
from eventflow.devdb import EmbeddedPostgres, cached_template
from eventflow.errors import EventFlowError
from eventflow.postgres import DEFAULT_SCHEMA, Lane, connector, migrate
from eventflow.supervision import background_tasks

DEAD_SECONDS = 0.5
"""How long after the kill another worker is asked for."""
REFRESH_SECONDS = 0.2
POLL_SECONDS = 0.005
START_SECONDS = 20.0
"""How long a process may take to be there."""
PATIENCE_SECONDS = 20.0
"""How long after the last due time everything must be done."""
ENOUGH_RUNNING = 3
"""The worker is killed while it runs at least so many jobs, unless that takes longer than a second."""

HalfWay = Callable[[str], Awaitable[None]]


def run_demo(
    *, jobs: int = 600, seconds: float = 8.0, console: Console | None = None, on_half_way: HalfWay | None = None
) -> int:
    """
    Schedule commands from one process, run them in another, kill that one half-way, and count.

    On a Postgres of its own in a temporary directory. Call it in the main thread, without an event loop.

    Args:
        jobs: The number of commands.
        seconds: All are due within this time.
        console: Where it is shown; by default standard output.
        on_half_way: Called with the address of the database just before the worker is killed.

    Returns:
        The exit status: 0; 1 if a job was lost or ran early, or the demo could not run; 130 after Ctrl-C.
    """
    console = console or Console()
    clock = SystemClock()
    began_at = clock.monotonic()
    try:
        with _sigterm_as_ctrl_c(), TemporaryDirectory(prefix="eventflow-demo-") as directory:
            view = view_on(console, jobs, clock)
            with EmbeddedPostgres(Path(directory) / "postgres", template=cached_template()) as database:
                demo = Demo(database.dsn(), Path(directory), view, clock=clock, on_half_way=on_half_way)
                figures = anyio.run(demo.run, jobs, seconds)
    except KeyboardInterrupt:
        console.print("Stopped; nothing is left running.")
        return 130
    except EventFlowError as exc:
        print_failure(console, str(exc))
        return 1
    print_figures(console, figures, dead_seconds=DEAD_SECONDS, seconds=clock.monotonic() - began_at)
    return 1 if figures.problems() else 0


class Demo:
    """
    The story: schedule, kill half-way, start again, wait until all is done.

    Args:
        dsn: Address of an empty database.
        directory: For the logs of the processes.
    """

    def __init__(
        self, dsn: str, directory: Path, view: View, *, clock: Clock, on_half_way: HalfWay | None = None
    ) -> None:
        self._dsn = dsn
        self._database = Lane(connector(dsn, name="demo"), DEFAULT_SCHEMA)
        self._directory = directory
        self._view = view
        self._clock = clock
        self._on_half_way = on_half_way
        self._worker = "not started"

    async def run(self, jobs: int, seconds: float) -> Figures:
        """
        Show it all and return what came of it.

        Raises:
            DemoError: a process failed.
            DatabaseError: the database did.
        """
        try:
            await self._make_tables()
            with self._view:
                async with background_tasks() as group:
                    group.start_soon(self._keep_showing)
                    await self._tell(jobs, seconds)
                    group.cancel_scope.cancel()
            return await read_figures(self._database)
        finally:
            self._database.terminate()

    async def _make_tables(self) -> None:
        async with self._database.connection() as connection:
            await migrate(connection)
            await connection.execute(statement("create_tables"))
            version = connection.get_settings().server_version
        self._view.say(f"Postgres {version} is running, and eventflow's tables are made")

    async def _tell(self, jobs: int, seconds: float) -> None:
        async with AsyncExitStack() as stack:
            worker = await self._start_worker(stack)
            producer = await self._start(stack, "producer", str(jobs), str(seconds))
            self._view.say(f"producer {producer.pid} schedules {jobs} commands, due within {seconds:g} s")
            await self._wait_for_first_job(producer)
            began_at = self._clock.monotonic()
            await self._wait_until(began_at + seconds / 2, worker, producer)
            if self._on_half_way is not None:
                await self._on_half_way(self._dsn)
            await self._kill(worker)
            await self._clock.sleep(DEAD_SECONDS)
            worker = await self._start_worker(stack)
            await self._wait_for_the_end(worker, producer, began_at + seconds + PATIENCE_SECONDS)

    async def _start_worker(self, stack: AsyncExitStack) -> DemoProcess:
        self._worker = "starting"
        worker = await self._start(stack, "worker")
        deadline = self._clock.monotonic() + START_SECONDS
        while not await is_registered(self._database, worker.pid):
            self._expect_well(worker)
            if self._clock.monotonic() > deadline:
                raise DemoError(f"the worker process did not register within {START_SECONDS:g} s")
            await self._clock.sleep(POLL_SECONDS)
        self._worker = f"running, process {worker.pid}"
        self._view.say(f"worker {worker.pid} is there")
        return worker

    async def _start(self, stack: AsyncExitStack, module: str, *arguments: str) -> DemoProcess:
        return await stack.enter_async_context(
            DemoProcess.start(module, *arguments, dsn=self._dsn, directory=self._directory, clock=self._clock)
        )

    async def _wait_for_first_job(self, producer: DemoProcess) -> None:
        while not producer.ended and not (await read_progress(self._database)).scheduled:
            await self._clock.sleep(POLL_SECONDS)

    async def _wait_until(self, instant: float, worker: DemoProcess, producer: DemoProcess) -> None:
        while (left := instant - self._clock.monotonic()) > 0:
            self._expect_well(worker, producer)
            await self._clock.sleep(min(left, REFRESH_SECONDS))

    async def _kill(self, worker: DemoProcess) -> None:
        """Kill the worker while its hands are full; the database's time of that is taken just before."""
        give_up_at = self._clock.monotonic() + 1.0
        while True:
            hands = await read_hands(self._database)
            if hands.running >= ENOUGH_RUNNING or self._clock.monotonic() > give_up_at:
                break
            await self._clock.sleep(POLL_SECONDS)
        self._expect_well(worker)
        await worker.kill()
        await self._database.fetch(statement("insert_kill"), hands.now)
        self._worker = "killed; nobody works"
        self._view.say(
            f"worker {worker.pid} is killed (SIGKILL) with {hands.running} jobs running and {hands.claimed} more "
            "in its hands",
            "bold red",
        )

    async def _wait_for_the_end(self, worker: DemoProcess, producer: DemoProcess, deadline: float) -> None:
        """Until all was scheduled and nothing waits or runs; what is missing then is seen in the figures."""
        told = False
        while not (producer.ended and (await read_progress(self._database)).idle):
            self._expect_well(worker, producer)
            if self._clock.monotonic() > deadline:
                self._view.say(f"not everything is done {PATIENCE_SECONDS:g} s after the last due time", "bold red")
                return
            told = told or await self._tell_rescue()
            await self._clock.sleep(REFRESH_SECONDS)
        if not told:
            await self._tell_rescue()
        self._view.say("nothing waits and nothing runs any more")

    async def _tell_rescue(self) -> bool:
        figures = await read_figures(self._database)
        if figures.rescued_after_ms is None:
            return False
        self._view.say(f"the dead worker's jobs run again, the first {figures.rescued_after_ms:.0f} ms after the kill")
        return True

    def _expect_well(self, worker: DemoProcess, producer: DemoProcess | None = None) -> None:
        """
        Make sure that no process failed.

        Raises:
            DemoError: one did.
        """
        if worker.ended:
            raise DemoError("the worker process ended, though nobody asked it to")
        if producer is not None:
            producer.check()

    async def _keep_showing(self) -> None:
        while True:
            self._view.show(await read_progress(self._database), self._worker)
            await self._clock.sleep(REFRESH_SECONDS)


@contextmanager
def _sigterm_as_ctrl_c() -> Generator[None]:
    """Clean up when the process is asked to end, as after Ctrl-C."""

    def interrupt(_: int, frame: FrameType | None) -> None:
        on_ctrl_c = signal.getsignal(signal.SIGINT)  # the event loop's own, while it runs
        if not callable(on_ctrl_c):
            raise KeyboardInterrupt
        on_ctrl_c(signal.SIGINT, frame)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
