"""One combination of a state and a failpoint: its own database, its processes, and what happened there."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

import asyncpg
import msgspec

from eventflow import App, JobId, WorkerId
from eventflow.jobs import ClaimedJob, Interest, Outcome, Peer, Settlement, WorkerRecord
from eventflow.postgres import Connection, PostgresJobStore, connector
from eventflow.scheduling import Due
from reliability.rig.transitions import Transitions
from tests.crashes.application import CREATE_TABLES, flow
from tests.crashes.processes import LISTENING, ForkedProcess, command_line
from tests.support.job_stores import ERROR
from tests.support.postgres import Database
from tests.support.waiting import eventually

KNOWN = Interest(None, ("Plain", "Flaky", "Brief"), (1, 1, 1))
SEEN = """
SELECT id, state, attempt, claim_no, coalesce(ready_at <= clock_timestamp(), true) AS is_ready,
    EXISTS (SELECT FROM start WHERE job_id = any_job.id) AS has_started
FROM eventflow.any_job WHERE id = ANY ($1)
"""
HELD = "SELECT running.id, worker.pid FROM eventflow.running JOIN eventflow.worker ON worker.id = worker_id"
EMPTY = """
TRUNCATE eventflow.job, eventflow.running, eventflow.job_history, eventflow.dead_letter, eventflow.worker,
    eventflow.signal, watched.change, start, written
"""
OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
LEFT = "SELECT (SELECT count(*) FROM eventflow.job) + (SELECT count(*) FROM eventflow.running)"
LONGEST_SECONDS = 30.0
EVERY_SECONDS = 0.03


class InconclusiveError(AssertionError):
    """The machine was so slow that nothing was shown: try again."""


async def wait_until(observe: Callable[[], Awaitable[bool]]) -> None:
    """:func:`eventually`, for scenes: many of them look at once."""
    await eventually(observe, within=LONGEST_SECONDS, every=EVERY_SECONDS)


class Seen(msgspec.Struct, frozen=True):
    """
    A job as it is when a process stands at a failpoint.

    Attributes:
        state: ``waiting``, ``running``, or how it ended.
        is_ready: Its time has come.
        has_started: A handler of it began, ever.
    """

    job_id: JobId
    state: str
    attempt: int
    claim_no: int
    is_ready: bool
    has_started: bool


class Kill(msgspec.Struct, frozen=True):
    """
    A process was killed.

    Attributes:
        at: By the database's clock, read immediately before.
        held: Jobs that the tables showed to be in its hands.
        orphans: Jobs that nobody living held any more.
        witnessed: Another worker was there already, listening.
    """

    pid: int
    at: datetime
    held: frozenset[JobId]
    orphans: frozenset[JobId]
    witnessed: bool


class Scene:
    """
    The database and the processes of one combination.

    Attributes:
        admin: A superuser's connection.
        soon: A while that a machine as busy as this needs no more than half of to start a worker.
        backing_off_until: When jobs may start that have failed before.
        subjects: The jobs that the state is about.
        kills: The processes that were killed, in order.
    """

    def __init__(self, database: Database, directory: Path, admin: Connection, soon: timedelta) -> None:
        self.database = database
        self.soon = soon
        self.backing_off_until: dict[JobId, datetime] = {}
        self.admin = admin
        self.transitions = Transitions(database.admin)
        self.subjects: Sequence[JobId] = ()
        self.kills: list[Kill] = []
        self._directory = directory
        self._processes: list[ForkedProcess] = []
        self._bystander: ForkedProcess | None = None

    @staticmethod
    async def furnish(database: Database) -> None:
        """Make a database ready for one scene after the other."""
        admin = await asyncpg.connect(database.admin)
        await admin.execute(CREATE_TABLES)
        await admin.close()
        await Transitions(database.admin).install()

    @classmethod
    @asynccontextmanager
    async def open(cls, database: Database, directory: Path, soon: timedelta) -> AsyncGenerator["Scene"]:
        """Begins without jobs, ends without processes; errors tell what these logged."""
        admin = await asyncpg.connect(database.admin)
        scene = cls(database, directory, admin, soon)
        try:
            await admin.fetch(f"SELECT pg_terminate_backend(pid) {OTHERS}")
            await wait_until(scene.is_alone)  # nothing that a dead process has sent is still under way
            await admin.execute(EMPTY)
            yield scene
        except Exception as exc:
            for log in sorted(directory.iterdir()):
                exc.add_note(f"{log.name}:\n{log.read_text()[-3000:]}")
            raise
        finally:
            for process in scene._processes:
                process.close()
            await admin.close()

    @asynccontextmanager
    async def app(self) -> AsyncGenerator[App]:
        """The application, in the process of the test."""
        async with flow.open(self.database.worker) as app:
            yield app

    # Processes

    def start(self, main: Callable[..., None], *arguments: object, failpoints: str = "") -> ForkedProcess:
        """Start a process."""
        log = self._directory / f"{len(self._processes)}.log"
        process = ForkedProcess(main, *arguments, dsn=self.database.worker, log=log, failpoints=failpoints)
        self._processes.append(process)
        return process

    async def bystander(self) -> ForkedProcess:
        """The worker that lives to the end, listening."""
        if self._bystander is None:
            process = self._bystander = self.start(command_line)
            await wait_until(lambda: self.admin.fetchval(LISTENING, process.pid))
        return self._bystander

    async def kill(self, process: ForkedProcess, *, unseen: bool = False) -> None:
        """
        SIGKILL. If anything is claimed, a bystander is there before, unless the death is to be *unseen*.

        Otherwise it comes after, since it would take what waits before the process is dead.
        """
        if not unseen and await self.admin.fetchval("SELECT EXISTS (SELECT FROM eventflow.running)"):
            await self.bystander()
        living = self._bystander and self._bystander.pid
        holders = {_job_id(row): row["pid"] for row in await self.admin.fetch(HELD)}
        at = await self.admin.fetchval("SELECT clock_timestamp()")
        process.kill()
        held = frozenset(job_id for job_id, pid in holders.items() if pid == process.pid)
        orphans = frozenset(job_id for job_id, pid in holders.items() if pid != living)
        self.kills.append(Kill(process.pid, at, held, orphans, witnessed=living is not None))

    # Observing

    async def is_alone(self) -> bool:
        """Whether nobody else is connected."""
        return not await self.admin.fetchval(f"SELECT count(*) {OTHERS}")

    async def seen(self) -> list[Seen]:
        """The subjects as they are now."""
        return [
            Seen(_job_id(row), *list(row.values())[1:])
            for row in await self.admin.fetch(SEEN, [job_id.uuid for job_id in self.subjects])
        ]

    async def until_started(self) -> None:
        """Wait until a handler of each subject has begun."""
        await wait_until(lambda: self._all(lambda job: job.has_started))

    async def until_claimed(self) -> None:
        """Wait until a worker holds each subject."""
        await wait_until(lambda: self._all(lambda job: job.state == "running"))

    async def nothing_left(self) -> bool:
        """Whether all jobs have ended."""
        return not await self.admin.fetchval(LEFT)

    async def has_jobs(self) -> bool:
        """Whether there are any."""
        return (await self.written())[0] > 0

    async def written(self) -> tuple[int, bool]:
        """How many jobs there are, and whether there is anything else that a producer writes with them."""
        row = await self.admin.fetchrow("SELECT (SELECT count(*) FROM eventflow.any_job), EXISTS (SELECT FROM written)")
        assert row is not None
        return row[0], row[1]

    async def is_disconnected(self, process: ForkedProcess) -> bool:
        """Whether the server has noticed that a process is gone."""
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'eventflow % ' || $1::text"
        return not await self.admin.fetchval(sessions, str(process.pid))

    async def _all(self, condition: Callable[[Seen], bool]) -> bool:
        return all(map(condition, await self.seen()))

    # What other workers did before

    async def fail(self, job_id: JobId, *, backoff: timedelta) -> None:
        """A worker ran this job, which failed."""
        async with self._another_worker() as (store, worker_id):
            [claim] = await _claim(store, worker_id)
            assert claim.id == job_id
            due = Due(delay_us=backoff // timedelta(microseconds=1))
            retry = Settlement(claim=claim, outcome=Outcome.RETRY, error=ERROR, due=due, started_us=claim.ready_us)
            assert await store.settle(worker_id, [retry]) == {job_id}
            await store.close_worker(worker_id)
        ready_at = await self.admin.fetchval("SELECT ready_at FROM eventflow.job WHERE id = $1", job_id.uuid)
        self.backing_off_until[job_id] = ready_at

    async def die_holding(self, job_ids: Iterable[JobId]) -> None:
        """A worker claimed these jobs and died."""
        async with self._another_worker() as (store, worker_id):
            claims = await _claim(store, worker_id)
            assert {claim.id for claim in claims} == set(job_ids)
            assert await store.rescue(Peer(worker_id, 0, session_gone=True)) == len(claims)

    async def park(self, job_ids: Sequence[JobId]) -> None:
        """A worker came by that does not know these jobs."""
        async with self._another_worker() as (store, worker_id):
            assert await store.park_unknown(Interest(None, ("Other",), (1,))) == len(job_ids)
            await store.close_worker(worker_id)

    @asynccontextmanager
    async def _another_worker(self) -> AsyncGenerator[tuple[PostgresJobStore, WorkerId]]:
        store = PostgresJobStore(connector(self.database.worker, name="another"), "eventflow")
        worker_id = WorkerId.new()
        try:
            await store.open_worker(WorkerRecord(worker_id, "elsewhere", 0, "test", None, 1))
            yield store, worker_id
        finally:
            await store.close()


async def _claim(store: PostgresJobStore, worker_id: WorkerId) -> Sequence[ClaimedJob]:
    batch = await store.claim(worker_id, KNOWN, ready=10, ahead=0, horizon_us=0)
    return batch.jobs or (await store.claim_suspect(worker_id, KNOWN)).jobs


def _job_id(row: asyncpg.Record) -> JobId:
    return JobId.of(str(row["id"]))
