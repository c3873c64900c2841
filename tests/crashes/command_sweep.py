"""All combinations of where a worker dies and which command, or transactional job, it had in its hands."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import anyio
import asyncpg
import msgspec

from eventflow import App, JobId
from eventflow.cli.app import run
from eventflow.postgres import Connection
from tests.crashes.command_application import (
    CREATE_TABLES,
    OTHERS,
    RUNNING,
    WROTE,
    Ask,
    Contended,
    FollowUp,
    LedgerId,
    Open,
    Plain,
    Spreading,
    Tell,
    Writing,
    WritingJob,
    flow,
)
from tests.crashes.points import points_of
from tests.crashes.processes import LISTENING, ForkedProcess
from tests.crashes.scene import Scene, wait_until
from tests.support.postgres import Database

EMPTY = """
TRUNCATE eventflow.event, eventflow.command_receipt, eventflow.deadline, eventflow.snapshot, eventflow.event_line,
    tried, own_row
"""
LEFT = """
SELECT (SELECT count(*) FROM eventflow.running)
    + (SELECT count(*) FROM eventflow.job WHERE due_at < clock_timestamp() + interval '1 minute')
"""
SEEN = """
SELECT state, attempt,
    (SELECT count(*) FROM eventflow.event WHERE name = 'Bumped') AS bumps,
    EXISTS (
        SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND (classid::bigint << 32) | objid::bigint = eventflow.stream_key('Ledger', $2)
    ) AS is_locked
FROM eventflow.any_job WHERE id = $1
"""

TAKE = "SELECT eventflow.release_claims(worker_id, true) FROM (SELECT DISTINCT worker_id FROM eventflow.running) AS w"

IN_HAND = ("claim.committed", "job.starting")
ENDED = ("commit.committed", "transaction.committed", "command.committed", "job.ran")
"""What passes one of these has committed."""
COMMANDS = ("command.loaded", "command.handled", "command.committed")
ONE_STATEMENT = ("commit.sending", "commit.committed")
TRANSACTIONS = (
    "transaction.opened",
    WROTE,
    "changes.sending",
    "changes.written",
    "transaction.committing",
    "transaction.committed",
)
LOCK = "stream.locked"
UNLOCKED = (RUNNING, WROTE, "command.handled", "commit.sending", "changes.sending")
"""Where a worker keeps others from nothing: they can take its job, and do it."""
POINTS = (*points_of("publisher"), RUNNING, WROTE)

NO_TRANSACTION: Mapping[str, str] = dict.fromkeys(TRANSACTIONS, "the handler asks for no transaction")
NO_STATEMENT: Mapping[str, str] = dict.fromkeys(ONE_STATEMENT, "it commits in the handler's transaction")
NO_COMMAND: Mapping[str, str] = dict.fromkeys(COMMANDS, "there is no command")
NO_CONFLICT: Mapping[str, str] = {LOCK: "nobody else writes to the stream"}
AT_ONCE = 10
LAST = "nothing"
"""What the job follows that shows a worker to have done everything before it."""
MOST_ERRORS = 8
"""After so many the others are not tried: each may take its time to fail."""


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is there once everything is done, however often it was tried.

    Attributes:
        events: Names, by stream and version.
        receipts: By the stored result.
        follow_ups: Jobs that succeeded, by name.
        deadlines: Jobs of deadlines that are still to come.
        own_rows: Written in the handler's transaction.
    """

    events: tuple[str, ...] = ()
    receipts: tuple[str, ...] = ()
    follow_ups: tuple[str, ...] = ()
    deadlines: int = 0
    own_rows: int = 0


class Seen(msgspec.Struct, frozen=True):
    """
    How far the job is when its worker stands still.

    Attributes:
        bumps: Events that others have written to the stream.
        is_locked: Somebody holds the stream.
    """

    state: str
    attempt: int
    bumps: int
    is_locked: bool


class Case:
    """
    What the worker has in its hands.

    Args:
        begin: Makes the job, without a worker; *fails*: its first attempt is to.
        effect: What comes of it.
        unreachable: Points that its worker does not pass, and why.
        is_contended: Others write to the stream until the worker locks it; it dies in that last try.
    """

    def __init__(
        self,
        begin: Callable[[App, LedgerId, bool], Awaitable[object]],
        effect: Effect,
        unreachable: Mapping[str, str],
        *,
        is_contended: bool = False,
    ) -> None:
        self.begin = begin
        self.effect = effect
        self.unreachable = unreachable
        self.is_contended = is_contended

    @property
    def points(self) -> tuple[str, ...]:
        """Where its worker is to die."""
        return tuple(point for point in POINTS if point not in self.unreachable)

    def is_here(self, job: Seen, point: str, attempt: int) -> bool:
        """Whether the worker that stands at this point is to die there."""
        if job.attempt != attempt or job.state != ("succeeded" if point in ENDED else "running"):
            return False
        if not self.is_contended or point in IN_HAND or point in ENDED:
            return True
        # The transaction is opened for the lock, and all that follows holds it.
        return job.bumps == OTHERS and (job.is_locked or point == "transaction.opened")


CASES: Mapping[str, Case] = {
    "plain": Case(
        lambda app, ledger, fails: app.commands.schedule(Plain(aggregate_id=ledger, fails=fails)),
        Effect(events=("Noted", "Noted"), receipts=("2",)),
        {**NO_TRANSACTION, **NO_CONFLICT},
    ),
    "spreading": Case(
        lambda app, ledger, fails: app.commands.schedule(Spreading(aggregate_id=ledger, fails=fails)),
        Effect(events=("Noted",), receipts=("1",), follow_ups=("FollowUp", "FollowUp"), deadlines=1),
        {**NO_TRANSACTION, **NO_CONFLICT},
    ),
    "deadline": Case(
        lambda app, ledger, fails: app.commands.publish(Open(aggregate_id=ledger, fails=fails)),
        Effect(events=("Noted", "Expired"), receipts=("1", "null"), follow_ups=("FollowUp",)),
        {**NO_TRANSACTION, **NO_CONFLICT},
    ),
    "transaction": Case(
        lambda app, ledger, fails: app.commands.schedule(Writing(aggregate_id=ledger, fails=fails)),
        Effect(events=("Noted", "Noted"), receipts=("2",), own_rows=1),
        {**NO_STATEMENT, **NO_CONFLICT},
    ),
    "contended": Case(
        lambda app, ledger, fails: app.commands.schedule(Contended(aggregate_id=ledger, fails=fails)),
        Effect(
            events=("Bumped",) * OTHERS + ("Noted",),
            receipts=("1", *("null",) * OTHERS),
            follow_ups=("FollowUp",),
            own_rows=1,
        ),
        NO_STATEMENT,
        is_contended=True,
    ),
    "job": Case(
        lambda app, ledger, fails: app.jobs.schedule(WritingJob(label=ledger, fails=fails)),
        Effect(follow_ups=("FollowUp",), own_rows=1),
        {**NO_COMMAND, **NO_STATEMENT, **NO_CONFLICT},
    ),
    "subscriber": Case(
        lambda app, ledger, fails: app.commands.publish(Tell(aggregate_id=ledger, fails=fails)),
        Effect(events=("Told", "Told"), receipts=("null",), follow_ups=("FollowUp", "FollowUp", "Subscriber:hear")),
        {**NO_COMMAND, **NO_TRANSACTION, **NO_CONFLICT},
    ),
    "saga": Case(
        lambda app, ledger, fails: app.commands.publish(Ask(aggregate_id=ledger, fails=fails)),
        Effect(events=("Asked", "Answered"), receipts=("null", "null"), follow_ups=("FollowUp",)),
        {**NO_TRANSACTION, **NO_CONFLICT},
    ),
}
"""By the name that a failing test shows."""


class CommandCombination(msgspec.Struct, frozen=True):
    """
    Where a worker dies, with what in its hands, and in which attempt.

    Attributes:
        points: One; or all that cannot be reached, where it is to live.
        fate: It ``dies``; it ``lives``, since it never comes there; or it is ``late``: it stands there while another
            takes the job from it and does it, and then goes on.
    """

    case: str
    attempt: int
    points: tuple[str, ...]
    fate: str = "dies"

    @property
    def crashes(self) -> int:
        """How often the job is given back."""
        return int(self.fate == "late" or (self.fate == "dies" and self.points[0] not in ENDED))

    def __str__(self) -> str:
        where = "unreachable" if self.fate == "lives" else self.points[0]
        return f"{self.case}-{('first', 'retried')[self.attempt - 1]}-{self.fate}-{where}"


def command_combinations(fate: str) -> list[CommandCombination]:
    """All of them in which this becomes of the worker."""
    return [
        CommandCombination(name, attempt, points, fate)
        for name, case in CASES.items()
        for attempt in (1, 2)
        for points in ([tuple(case.unreachable)] if fate == "lives" else [(point,) for point in case.points])
        if fate != "late" or (attempt == 1 and not case.is_contended and points[0] in UNLOCKED)
    ]


def command_worker() -> None:
    """``eventflow worker``, as a user starts it."""
    sys.exit(run(["worker", "tests.crashes.command_application:flow"]))


class CommandScene(Scene):
    """The database and the processes of one combination."""

    @staticmethod
    async def furnish(database: Database) -> None:
        await Scene.furnish(database)
        admin: Connection = await asyncpg.connect(database.admin)
        await admin.execute(CREATE_TABLES)
        await admin.close()

    @classmethod
    @asynccontextmanager
    async def open(cls, database: Database, directory: Path, soon: timedelta) -> AsyncGenerator["CommandScene"]:
        async with super().open(database, directory, soon) as scene:
            assert isinstance(scene, CommandScene)
            await scene.admin.execute(EMPTY)
            yield scene

    @asynccontextmanager
    async def app(self) -> AsyncGenerator[App]:
        async with flow.open(self.database.worker) as app:
            yield app

    async def bystander(self) -> ForkedProcess:
        if self._bystander is None:
            process = self._bystander = self.start(command_worker)
            await wait_until(lambda: self.admin.fetchval(LISTENING, process.pid))
        return self._bystander

    async def nothing_left(self) -> bool:
        return not await self.admin.fetchval(LEFT)

    async def look(self, job_id: JobId, ledger: LedgerId) -> Seen:
        """How far the job is."""
        row = await self.admin.fetchrow(SEEN, job_id.uuid, ledger)
        assert row is not None
        return Seen(*row.values())

    async def has_logged(self, worker: ForkedProcess, event: str) -> bool:
        """Whether a process has said so."""
        return event in (self._directory / f"{self._processes.index(worker)}.log").read_text()


Judge = Callable[[CommandScene, CommandCombination, JobId, LedgerId], Awaitable[None]]


def command_sweep(
    wanted: Sequence[CommandCombination], databases: Sequence[Database], directory: Path, judge: Judge
) -> dict[CommandCombination, Exception | None]:
    """Try these combinations, as many at once as there are databases; what was wrong with each."""
    return asyncio.run(_sweep(list(wanted), databases, directory, judge))


async def _sweep(
    wanted: list[CommandCombination], databases: Sequence[Database], directory: Path, judge: Judge
) -> dict[CommandCombination, Exception | None]:
    errors: dict[CommandCombination, Exception | None] = {}

    async def work_in(database: Database) -> None:
        await CommandScene.furnish(database)
        while wanted:
            combination = wanted.pop(0)
            if sum(error is not None for error in errors.values()) >= MOST_ERRORS:
                errors[combination] = AssertionError(f"not tried: {MOST_ERRORS} others failed")
                continue
            place = directory / str(combination)
            place.mkdir()
            try:
                async with CommandScene.open(database, place, timedelta()) as scene:
                    await _play(scene, combination, judge)
                errors[combination] = None
            except Exception as exc:  # noqa: BLE001 - raised by the test of this combination
                errors[combination] = exc

    async with anyio.create_task_group() as group:
        for database in databases:
            group.start_soon(work_in, database)
    return errors


async def _play(scene: CommandScene, combination: CommandCombination, judge: Judge) -> None:
    ledger, case = LedgerId.new(), CASES[combination.case]
    async with scene.app() as app:
        await case.begin(app, ledger, combination.attempt == 2)
        [job] = await app.jobs.find()
    failpoints = ",".join(f"{point}=stop@every" for point in combination.points)
    worker = scene.start(command_worker, failpoints=failpoints)

    async def is_here() -> bool:
        seen = await scene.look(job.id, ledger)
        return any(case.is_here(seen, point, combination.attempt) for point in combination.points)

    await {"dies": _dies, "lives": _lives, "late": _is_late}[combination.fate](scene, worker, is_here)
    await wait_until(scene.nothing_left)
    await judge(scene, combination, job.id, ledger)


async def _comes_to(worker: ForkedProcess, is_here: Callable[[], Awaitable[bool]]) -> None:
    """Let the worker go on until it stands where it is to."""
    await wait_until(worker.stands)
    while not await is_here():
        worker.resume()
        await wait_until(worker.stands)


async def _dies(scene: CommandScene, worker: ForkedProcess, is_here: Callable[[], Awaitable[bool]]) -> None:
    await _comes_to(worker, is_here)
    await scene.kill(worker)
    await scene.bystander()


async def _is_late(scene: CommandScene, worker: ForkedProcess, is_here: Callable[[], Awaitable[bool]]) -> None:
    await _comes_to(worker, is_here)
    await scene.admin.execute(TAKE)
    await scene.bystander()
    await wait_until(scene.nothing_left)
    worker.resume()
    await wait_until(lambda: scene.has_logged(worker, "claim.lost"))


async def _lives(scene: CommandScene, worker: ForkedProcess, is_here: Callable[[], Awaitable[bool]]) -> None:
    """Let the worker go on to the end: what follows a commit it has done once another job has gone through it."""

    async def stands_or_is_done() -> bool:
        return await worker.stands() or await scene.nothing_left()

    for last in (False, True):
        if last:
            async with scene.app() as app:
                await app.jobs.schedule(FollowUp(of=LAST))
        await wait_until(stands_or_is_done)
        while await worker.stands():
            assert not await is_here(), "one of these was passed"
            worker.resume()
            await wait_until(stands_or_is_done)
