"""Whatever a handler raises, or schedules in vain, that job alone is affected."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import anyio
import pytest

from eventflow import App, CommandContext, EventFlow, Job, JobContext, JobId, JobState, RetryPolicy, StandaloneCommand
from reliability.rig.transitions import Transitions
from tests.support.journal import Journal, Note, ended, flow_of, query
from tests.support.poison import all_can_be_seen

ONCE = RetryPolicy(max_attempts=1)


class Raises(Job):
    """Raises in the event loop."""

    kind: str

    async def execute(self, context: JobContext) -> None:
        throw(self.kind)


class RaisesInThread(Raises):
    """Raises in a thread."""

    def execute(self, context: JobContext) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        throw(self.kind)


class RaisesWhenCancelled(Raises):
    """Answers its timeout with an error."""

    async def execute(self, context: JobContext) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            throw(self.kind)


class Raise(StandaloneCommand):
    """Handled in the event loop."""

    kind: str


class RaiseInThread(StandaloneCommand):
    """Handled in a thread."""

    kind: str


async def raise_it(command: Raise, context: CommandContext) -> None:
    """Raise in the event loop."""
    throw(command.kind)


def raise_in_thread(command: RaiseInThread, context: CommandContext) -> None:
    """Raise in a thread."""
    throw(command.kind)


class TextError(Exception):
    """Has a text of its own making."""

    def __init__(self, text: Callable[[], Any]) -> None:
        super().__init__()
        self.text = text

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__


class OddText(str):
    """A text that cannot be measured."""

    __slots__ = ()

    def __len__(self) -> int:
        raise RuntimeError("no length")


class NamelessMeta(type):
    """Types of this kind have no name."""

    def __getattribute__(cls, name: str) -> Any:  # Any: whatever a type has
        if name in ("__module__", "__qualname__"):
            raise RuntimeError("no name")
        return super().__getattribute__(name)


class UnhashableMeta(type):
    """Types of this kind cannot be looked up."""

    __hash__ = None  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

    def __eq__(cls, other: object) -> bool:
        return cls is other


def nameless() -> BaseException:
    """An error whose type has no name."""
    return NamelessMeta("Nameless", (Exception,), {})()


def oddly_named() -> BaseException:
    """An error whose type has a name that no table takes."""
    return type("Odd", (Exception,), {"__module__": "\ud800\0"})()


def unhashable() -> BaseException:
    """An error whose type cannot be looked up."""
    return UnhashableMeta("Unhashable", (Exception,), {})()


def exits() -> str:
    """A text that ends the process."""
    raise SystemExit(3)


def nested(depth: int) -> BaseException:
    """A group in a group in a group."""
    error: Exception = ValueError("innermost")
    for _ in range(depth):
        error = ExceptionGroup[Exception]("nested", [error])
    return error


def circle() -> BaseException:
    """Two errors that are each other's cause."""
    error, other = ValueError("one"), ValueError("two")
    error.__cause__, other.__cause__ = other, error
    return error


def chain(length: int) -> BaseException:
    """An error with a cause with a cause with a cause."""
    error = ValueError("first")
    for _ in range(length):
        following = ValueError("then")
        following.__cause__ = error
        error = following
    return error


def recurse(depth: int = 0) -> BaseException:
    """Fail of depth."""
    return recurse(depth + 1)


KINDS: dict[str, Callable[[], BaseException]] = {
    "keyboard interrupt": KeyboardInterrupt,
    "exit": lambda: SystemExit(0),
    "generator exit": GeneratorExit,
    "stop iteration": StopIteration,
    "cancelled": lambda: asyncio.CancelledError("my own"),
    "group of all": lambda: BaseExceptionGroup(
        "all", [KeyboardInterrupt(), SystemExit(1), GeneratorExit(), asyncio.CancelledError(), ValueError()]
    ),
    "group of cancellations": lambda: BaseExceptionGroup("all", [asyncio.CancelledError(), asyncio.CancelledError()]),
    "nested": lambda: nested(20_000),
    "wide": lambda: ExceptionGroup("wide", [ValueError(number) for number in range(100_000)]),
    "circle": circle,
    "chain": lambda: chain(10_000),
    "recursion": recurse,
    "nul": lambda: ValueError("nul \0"),
    "surrogate": lambda: ValueError("\ud800"),
    "lines": lambda: ValueError("x\n" * 25_000_000),
    "no text": lambda: TextError(lambda: 5),
    "text that fails": lambda: TextError(lambda: 1 // 0),
    "text that exits": lambda: TextError(exits),
    "odd text": lambda: TextError(lambda: OddText("odd")),
    "no name": nameless,
    "odd name": oddly_named,
    "no hash": unhashable,
}


def throw(kind: str) -> None:
    """Raise an error of this kind."""
    error = KINDS[kind]()
    raise error


def poisonous(journal: Journal) -> EventFlow:
    """A flow with every way to raise."""
    flow = flow_of(journal)
    flow.job(retry=ONCE)(Raises)
    flow.job(retry=ONCE)(RaisesInThread)
    flow.job(retry=ONCE, timeout=timedelta(milliseconds=1))(RaisesWhenCancelled)
    flow.command_handler(retry=ONCE)(raise_it)
    flow.command_handler(retry=ONCE)(raise_in_thread)
    return flow


@pytest.mark.parametrize("way", [Raises, RaisesInThread, RaisesWhenCancelled, Raise, RaiseInThread])
async def test_whatever_a_handler_raises_is_that_jobs_failure(
    dsn: str, journal: Journal, way: type[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """In the event loop, in a thread, in answer to a timeout, as job or command: its dead letter says what it was."""
    kinds = [kind for kind in KINDS if kind != "generator exit" or way not in (RaisesInThread, RaiseInThread)]
    async with poisonous(journal).open(dsn) as app:
        neighbours = list(await app.jobs.schedule_many([Note() for _ in range(10)]))
        failing = {kind: await schedule(app, way(kind=kind)) for kind in kinds}
        neighbours += await app.jobs.schedule_many([Note() for _ in range(10)])
        async with app.worker():
            dead = {kind: await ended(app, job_id) for kind, job_id in failing.items()}
            others = [await ended(app, job_id) for job_id in neighbours]
        await all_can_be_seen(app, dsn, list(failing.values()), capsys)

    reasons = dict.fromkeys(kinds, "error")
    if way is RaisesWhenCancelled:
        reasons["cancelled"] = "timeout"  # it gave way, as it should
    assert {kind: record.reason for kind, record in dead.items()} == reasons
    assert {(record.state, record.claim_no, record.attempt) for record in others} == {(JobState.SUCCEEDED, 1, 1)}
    assert all(record.error is not None and record.error["type"] for record in dead.values())


@pytest.mark.parametrize("way", [RaisesInThread, RaiseInThread])
async def test_generator_exit_of_a_thread_is_that_jobs_failure(dsn: str, journal: Journal, way: type[Any]) -> None:
    """A task into which a future throws one ends, past every handler of it: so no future may."""
    async with poisonous(journal).open(dsn) as app, app.worker():
        dead = await ended(app, await schedule(app, way(kind="generator exit")), within=5)

    assert dead.reason == "error"


async def schedule(app: App, message: Job | StandaloneCommand) -> JobId:
    """Schedule a job or command."""
    return await (app.jobs.schedule(message) if isinstance(message, Job) else app.commands.schedule(message))


class Leads(Job):
    """Schedules a note, and one that is more than the store takes."""

    then: str

    async def execute(self, context: JobContext) -> None:
        context.schedule(Note(label="fine"))
        if self.then == "too big":
            context.schedule(Note(label="x" * 2_000_000))
        elif self.then == "refused":
            context.schedule(Note(), key="refused")


async def test_follow_ups_that_are_refused_concern_their_own_job(
    dsn: str, admin_dsn: str, journal: Journal, transitions: Transitions
) -> None:
    """Too large, or against a rule of the tables: that job is dead, without follow-ups; its neighbours have theirs."""
    await query(admin_dsn, "ALTER TABLE eventflow.job ADD CHECK (key <> 'refused')")
    flow = flow_of(journal)
    flow.job(retry=ONCE)(Leads)
    async with flow.open(dsn) as app:
        ids = list(await app.jobs.schedule_many([Leads(then=then) for then in ("", "too big", "refused", "")]))
        async with app.worker():
            records = [await ended(app, job_id) for job_id in ids]
            await journal.until_runs(2)

    assert [(record.state, record.reason) for record in records] == [
        (JobState.SUCCEEDED, None),
        (JobState.DEAD, "error"),
        (JobState.DEAD, "refused_by_store"),
        (JobState.SUCCEEDED, None),
    ]
    assert journal.labels() == ["fine", "fine"]
    assert {record.claim_no for record in records} == {1}
