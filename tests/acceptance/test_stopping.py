"""SIGTERM at every moment of a worker's life: nothing stays claimed, no attempt is lost, the exit code says how."""

import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import anyio

from eventflow import App, EventFlow, Job, JobContext, JobId, JobState, SystemClock
from eventflow.cli.exits import ExitCode
from eventflow.cli.signals import SAME_SECONDS
from eventflow.postgres import Connection
from reliability.failpoints import SWEPT
from tests.acceptance import shop
from tests.acceptance.workers import ROOT
from tests.support.journal import Note
from tests.support.waiting import eventually, until

T = TypeVar("T")

SECONDS = 40.0
"""Nothing here takes longer, on however busy a machine."""
SIDE_BY_SIDE = 4
"""Processes that run at once."""
EARLIEST = (0, 1, 20)
"""Moments before anything is imported, and when it has just begun to listen."""
MOMENTS = 9
"""Spread over the rest of its life; more of them cost time and prove the same."""
BEFORE_IT_LISTENS = -signal.SIGTERM
ENDED_AT_ONCE = 128 + signal.SIGTERM

log = logging.getLogger("handlers")
flow = EventFlow("handlers")


@flow.job
class Sleep(Job):
    """Gives way when it is cancelled."""

    seconds: float

    async def execute(self, context: JobContext) -> None:
        log.info("running")
        await SystemClock().sleep(self.seconds)


@flow.job
class TidyUp(Job):
    """Gives way after a while."""

    async def execute(self, context: JobContext) -> None:
        log.info("running")
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await SystemClock().sleep(0.5)


@flow.job
class Swallow(Job):
    """Never gives way."""

    async def execute(self, context: JobContext) -> None:
        log.info("running")
        while True:
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True):
                    await SystemClock().sleep(0.05)


@flow.job
class InThread(Job):
    """Cannot be cancelled."""

    seconds: float

    def execute(self, context: JobContext) -> None:
        log.info("running")
        threading.Event().wait(self.seconds)


SITECUSTOMIZE = """
# Counts how often the main thread enters or resumes a function of eventflow from the moment when the process listens to
# signals, and sends itself SIGTERM at the given count; at 0, before anything is imported. SIGUSR1 asks for the count.
import os, signal, sys

at, count, listens = int(os.environ.get("SIGTERM_AT", "-1")), 0, False


def profile(frame, event, argument):
    global count, listens
    code = frame.f_code
    if "/eventflow/" not in code.co_filename:
        return
    if event == "return" and code.co_qualname == "StopSignals.install":
        listens = True
    elif event == "call" and listens:
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGTERM)


if not any(argument.startswith("--supervised-by") for argument in sys.orig_argv):
    if at == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGUSR1, lambda *_: print(f"calls={count}.", flush=True))
    sys.setprofile(profile)
"""


class Process:
    """``eventflow worker`` for one queue, whose name is that of its log too."""

    def __init__(self, target: str, directory: Path, queue: str, *options: str, **environment: str) -> None:
        self.queue = queue
        self._log = directory / f"{queue}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "eventflow", "worker", target, f"--queues={queue}", *options],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(directory)} | environment,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        """What it said so far."""
        return self._log.read_text()

    async def says(self, text: str, times: int = 1) -> str:
        """Wait until it has said so; returns all it said."""

        def said() -> bool:
            heard = self.log.count(text) >= times
            assert heard or self.process.poll() is None, self
            return heard

        await until(said, within=SECONDS)
        return self.log

    async def stands(self) -> None:
        """Wait until it has stopped itself at a failpoint."""
        stopped = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
        await until(lambda: os.waitid(os.P_PID, self.process.pid, stopped) is not None, within=SECONDS)

    async def ended(self) -> int:
        """Its exit code."""
        await until(lambda: self.process.poll() is not None, within=SECONDS)
        return self.process.wait()

    def send(self, *signals: signal.Signals) -> None:
        """Send it these."""
        for number in signals:
            self.process.send_signal(number)

    def __repr__(self) -> str:
        return f"{self.queue} ended with {self.process.poll()}:\n{self.log}"


class Stage:
    """
    Starts workers of one application, and shows what they leave behind in the database.

    Attributes:
        app: Schedules for them.
        workers: All that were started.
    """

    def __init__(self, app: App, target: str, directory: Path, admin: Connection) -> None:
        self.app = app
        self.workers: list[Process] = []
        self._numbers = itertools.count()
        self._target = target
        self._directory = directory
        self._admin = admin
        (directory / "sitecustomize.py").write_text(SITECUSTOMIZE)

    def start(self, queue: str, *options: str, **environment: str) -> Process:
        """One more worker."""
        process = Process(self._target, self._directory, queue, *options, **environment)
        self.workers.append(process)
        return process

    def kill(self) -> None:
        """None of them outlives its test."""
        for worker in self.workers:
            worker.process.kill()
            worker.process.wait()

    async def schedule_some(self, queue: str) -> list[JobId]:
        """Two jobs of each kind that the shop has."""
        schedule, publish = self.app.jobs.schedule, self.app.commands.schedule
        return [
            job_id
            for number in itertools.islice(self._numbers, 2)
            for job_id in (
                await schedule(shop.Flaky(number=number), queue=queue),
                await schedule(shop.Parent(number=number), queue=queue),
                await publish(shop.Record(number=number), queue=queue),
            )
        ]

    async def states(self, ids: Iterable[JobId]) -> list[JobState]:
        """The states of these jobs, which must exist."""
        records = [await self.app.jobs.get(job_id) for job_id in ids]
        return [record.state for record in records if record is not None]

    async def all_succeed(self, ids: Iterable[JobId]) -> None:
        """Wait until they have."""

        async def done() -> bool:
            return set(await self.states(ids)) == {JobState.SUCCEEDED}

        await eventually(done, within=SECONDS)

    async def nothing_is_left(self) -> None:
        """No job is claimed, no waiting job has lost an attempt, no worker looks alive, and none is connected."""
        assert await self.app.jobs.find(state=JobState.RUNNING) == []
        waiting = await self.app.jobs.find(state=JobState.WAITING, limit=1000)
        assert [job for job in waiting if job.crashes or job.attempt != len(job.past_attempts)] == []
        assert await self._admin.fetchval(OPEN_WORKERS) == 0

        async def disconnected() -> bool:
            return await self._admin.fetchval(OTHER_SESSIONS, f"%{os.getpid()}") == 0

        await eventually(disconnected)  # the server takes a moment to notice

    async def rescue_all(self) -> None:
        """Let a worker that knows none of these jobs rescue those of workers that are gone."""
        flow = EventFlow("rescuer")
        flow.add_jobs(Note)

        async def rescued() -> bool:
            return await self._admin.fetchval(OPEN_WORKERS) == 1

        async with flow.open(os.environ["EVENTFLOW_DSN"]) as app, app.worker():
            await eventually(rescued)


OPEN_WORKERS = "SELECT count(*) FROM eventflow.worker WHERE closed_at IS NULL"
OTHER_SESSIONS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
    AND application_name NOT LIKE $1
"""
TOO_OFTEN = """
SELECT kind, number, count(*) FROM effect GROUP BY kind, number
HAVING count(*) > CASE kind WHEN 'flaky' THEN 2 ELSE 1 END
"""


@asynccontextmanager
async def stage(dsn: str, directory: Path, admin: Connection, *, of: str = "shop") -> AsyncGenerator[Stage]:
    """Workers of the shop, or of the handlers in this module."""
    module, opened = ("shop", shop.flow) if of == "shop" else ("test_stopping", flow)
    async with opened.open(dsn) as app:
        workers = Stage(app, f"tests.acceptance.{module}:flow", directory, admin)
        try:
            yield workers
        finally:
            workers.kill()


async def side_by_side(try_out: Callable[[T], Awaitable[None]], cases: Iterable[T]) -> None:
    """Try these out, a few at a time."""
    room = anyio.CapacityLimiter(SIDE_BY_SIDE)

    async def try_one(case: T) -> None:
        async with room:
            await try_out(case)

    async with anyio.create_task_group() as group:
        for case in cases:
            group.start_soon(try_one, case)


async def test_sigterm_at_any_moment_of_start_up_and_work(dsn: str, admin: Connection, tmp_path: Path) -> None:
    """From the first import to the last completion: it ends in good order, and every job has run once or waits."""
    async with stage(dsn, tmp_path, admin) as workers:
        whole = workers.start("whole")
        await workers.all_succeed(await workers.schedule_some("whole"))
        whole.send(signal.SIGUSR1)
        calls = int((await whole.says(".\n")).partition("calls=")[2].partition(".")[0])
        whole.send(signal.SIGTERM)
        assert await whole.ended() == ExitCode.DONE, whole

        async def stop_at(moment: int) -> None:
            queue = f"stopped at {moment}"
            ids = await workers.schedule_some(queue)
            worker = workers.start(queue, SIGTERM_AT=str(moment))
            assert await worker.ended() == (ExitCode.DONE if moment else BEFORE_IT_LISTENS), worker
            assert worker.log.count("Traceback") == worker.log.count("\nRuntimeError: the first attempt fails"), worker
            assert set(await workers.states(ids)) <= {JobState.WAITING, JobState.SUCCEEDED}, worker

        await side_by_side(stop_at, [*EARLIEST, *(calls * (number + 1) // (MOMENTS + 1) for number in range(MOMENTS))])
        await workers.nothing_is_left()
        assert await admin.fetch(TOO_OFTEN) == []


async def test_sigterm_at_every_failpoint_of_a_worker(dsn: str, admin: Connection, tmp_path: Path) -> None:
    """Between any two of its steps that others can see, it still stops in good order."""
    async with stage(dsn, tmp_path, admin) as workers:

        async def stop_at(failpoint: str) -> None:
            ids = await workers.schedule_some(failpoint)
            worker = workers.start(failpoint, EVENTFLOW_FAILPOINTS=f"{failpoint}=stop")
            await worker.stands()
            worker.send(signal.SIGTERM, signal.SIGCONT)
            assert await worker.ended() == ExitCode.DONE, worker
            assert set(await workers.states(ids)) <= {JobState.WAITING, JobState.SUCCEEDED}, worker

        await side_by_side(stop_at, [name for name, who in SWEPT.items() if who == ("worker",)])
        await workers.nothing_is_left()
        assert await admin.fetch(TOO_OFTEN) == []


async def test_handlers_end_or_are_given_back(dsn: str, admin: Connection, tmp_path: Path) -> None:
    """What ends within the grace period has succeeded; what gives way after it waits again, at no cost."""
    async with stage(dsn, tmp_path, admin, of="handlers") as workers:
        schedule = workers.app.jobs.schedule_many
        short = await schedule([Sleep(seconds=0.5), InThread(seconds=0.5)], queue="gentle")
        long = await schedule([Sleep(seconds=60), TidyUp()], queue="gentle")
        worker = workers.start("gentle", "--grace-period=3")
        await worker.says("running", times=4)
        worker.send(signal.SIGINT)

        assert await worker.ended() == ExitCode.DONE, worker
        assert await workers.states(short) == [JobState.SUCCEEDED] * 2
        assert await workers.states(long) == [JobState.WAITING] * 2
        await workers.nothing_is_left()


async def test_handlers_that_do_not_give_way_hold_up_no_other_job(dsn: str, admin: Connection, tmp_path: Path) -> None:
    """The process ends by force; all but their jobs have been given back by then, and theirs are rescued."""
    async with stage(dsn, tmp_path, admin, of="handlers") as workers:
        schedule = workers.app.jobs.schedule_many
        stubborn = await schedule([Swallow(), InThread(seconds=60)], queue="stubborn")
        long = await schedule([Sleep(seconds=60), TidyUp()], queue="stubborn")
        worker = workers.start("stubborn", "--grace-period=0.2", "--clean-up-period=3")
        await worker.says("running", times=4)
        worker.send(signal.SIGTERM)

        assert await worker.ended() == ExitCode.FORCED, worker
        assert await workers.states(long) == [JobState.WAITING] * 2
        assert await workers.states(stubborn) == [JobState.RUNNING] * 2
        await workers.rescue_all()
        assert await workers.states(stubborn) == [JobState.WAITING] * 2


async def test_a_second_signal_while_it_gives_back_and_closes(dsn: str, admin: Connection, tmp_path: Path) -> None:
    """It ends at once, unless it is done first; what it had not given back is rescued."""
    async with stage(dsn, tmp_path, admin, of="handlers") as workers:
        ids: list[JobId] = []

        async def stop_at(failpoint: str) -> None:
            ids.extend(await workers.app.jobs.schedule_many([Sleep(seconds=60)] * 2, queue=failpoint))
            worker = workers.start(failpoint, "--grace-period=0", EVENTFLOW_FAILPOINTS=f"{failpoint}=stop")
            await worker.says("running", times=2)
            worker.send(signal.SIGTERM)
            await worker.stands()
            await SystemClock().sleep(2 * SAME_SECONDS)  # signals that come closer are one
            worker.send(signal.SIGTERM, signal.SIGCONT)
            assert await worker.ended() in (ENDED_AT_ONCE, ExitCode.DONE), worker

        await side_by_side(stop_at, ["settle.sending", "rescue.closing", "rescue.closed", "rescue.committed"])
        await workers.rescue_all()
        assert set(await workers.states(ids)) == {JobState.WAITING}


async def test_sigterm_at_any_moment_of_a_supervisor(dsn: str, admin: Connection, tmp_path: Path) -> None:
    """Its processes stop in good order, those that are just starting too."""
    async with stage(dsn, tmp_path, admin) as workers:

        async def stop_at(moment: int) -> None:
            queue = f"stopped at {moment}"
            ids = await workers.schedule_some(queue)
            supervisor = workers.start(queue, "--processes=2", SIGTERM_AT=str(moment))
            if moment < 0:
                await supervisor.says("worker.started", times=2)
                supervisor.send(signal.SIGTERM)
            assert await supervisor.ended() == ExitCode.DONE, supervisor
            assert set(await workers.states(ids)) <= {JobState.WAITING, JobState.SUCCEEDED}, supervisor

        await side_by_side(stop_at, [-1, 1, 10, 20, 40])
        await workers.nothing_is_left()
        assert await admin.fetch(TOO_OFTEN) == []
