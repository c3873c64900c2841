"""Applications and workers that come and go, with errands to run, and a look at all there is after each step."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import TypeVar

import anyio
import asyncpg
from anyio.from_thread import start_blocking_portal
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from eventflow import App, StoredEvent, StreamId, WorkerSettings
from eventflow.postgres import Connection
from tests.support.errand_model import Model, Seen
from tests.support.errands import CREATE_EFFECTS, BoardId, Desk, errand_flow
from tests.support.postgres import PostgresServer
from tests.support.waiting import eventually

T = TypeVar("T")

WITHIN = 10.0
"""Seconds in which all that is due has run."""
MOST_WORKERS = 2
APPS = st.integers(0, 1)
"""The second one, if it is open."""


class ErrandMachine(RuleBasedStateMachine):
    """
    Runs errands; what there is to do comes from rules of a subclass.

    Args:
        server: Where each has a database of its own.

    Attributes:
        story: What was called, and answered.
        failure: The first.
    """

    def __init__(self, server: PostgresServer) -> None:
        super().__init__()
        self.opened = ExitStack()
        self.failure: BaseException | None = None
        self.story: list[str] = []
        self.database = server.create_migrated()
        self.opened.callback(server.drop, self.database.name)
        self.portal = self.opened.enter_context(start_blocking_portal())
        self.admin = self.do(self._connect)
        self.opened.callback(self.portal.call, self.admin.close)
        self.desk = Desk()
        self.boards = [BoardId.new(), BoardId.new()]
        self.model = Model(self.desk, self.boards)
        self.flow = errand_flow(self.desk)
        self.apps: list[tuple[App, ExitStack]] = []
        self.workers: list[tuple[App, AbstractContextManager[object], bool]] = []
        self.worked = self.has_worked = False
        self.open_application()

    async def _connect(self) -> Connection:
        connection: Connection = await asyncpg.connect(self.database.admin)
        await connection.execute(CREATE_EFFECTS)
        return connection

    def do(self, call: Callable[..., Awaitable[T]], *args: object) -> T:
        """Call in the event loop, where workers go on between calls."""
        return self.portal.call(call, *args)

    def check(self, call: Callable[..., Awaitable[object]], *args: object) -> None:
        """
        Call what may fail, unless something has.

        Once there was a worker, a failure is raised at the end. When it shows depends on how fast the worker is, and
        Hypothesis can only make small what happens at the same step each time.
        """
        if self.failure is not None:
            return
        try:
            self.do(call, *args)
        except BaseException as exc:
            exc.add_note("\n".join(["What was called:", *self.story]))
            self.failure = exc
            if not self.has_worked:
                raise

    def tell(self, *words: object) -> None:
        """Add to the story."""
        self.story.append("  " + " ".join(map(str, words)))

    def teardown(self) -> None:
        try:
            if self.failure is None:
                self.run_the_rest()
            if self.failure is not None:
                raise self.failure
        finally:
            self.desk.gate.set()
            while self.workers:
                self._stop(self.workers.pop()[1])
            while self.apps:
                self.apps.pop()[1].close()
            self.opened.close()

    def run_the_rest(self) -> None:
        """Have whatever still waits run at last."""
        raise NotImplementedError  # a subclass knows what it has asked for

    async def all_is_told(self, app: App) -> None:
        """Look at what must be once nothing is due."""
        raise NotImplementedError  # likewise

    # Applications and workers

    @precondition(lambda self: len(self.apps) == 1)
    @rule()
    def open_application(self) -> None:
        stack = ExitStack()
        app = stack.enter_context(self.portal.wrap_async_context_manager(self.flow.open(self.database.worker)))
        self.apps.append((app, stack))
        self.tell("open application")

    @precondition(lambda self: len(self.apps) == 2 and all(app is not self.apps[1][0] for app, *_ in self.workers))
    @rule()
    def close_application(self) -> None:
        self.tell("close application")
        self.apps.pop()[1].close()

    def app(self, number: int) -> App:
        """That one, or the only one."""
        return self.apps[min(number, len(self.apps) - 1)][0]

    @precondition(lambda self: len(self.workers) < MOST_WORKERS)
    @rule(app=APPS, concurrency=st.sampled_from([1, 2, 100]), has_grace=st.booleans())
    def start_worker(self, app: int, concurrency: int, has_grace: bool) -> None:
        self.tell("start worker", f"{app=} {concurrency=} {has_grace=}")
        grace = 25.0 if has_grace else 0.0
        of = self.app(app)
        running = self.portal.wrap_async_context_manager(
            of.worker(WorkerSettings(concurrency=concurrency, grace_period=grace, tick_interval=0.2))
        )
        running.__enter__()
        self.workers.append((of, running, has_grace))
        self.worked = self.has_worked = True

    @precondition(lambda self: self.workers)
    @rule(number=st.integers(0, MOST_WORKERS - 1))
    def stop_worker(self, number: int) -> None:
        self.tell("stop worker", number)
        _, running, has_grace = self.workers.pop(min(number, len(self.workers) - 1))
        if has_grace:
            self._with_open_gate(partial(self._stop, running))
        else:
            self._stop(running)
        if not self.workers:
            self.check(self._rest)

    async def _rest(self) -> None:
        self.model.rest((await self._look()).records)

    def _stop(self, running: AbstractContextManager[object]) -> None:
        running.__exit__(None, None, None)

    def stop_all(self) -> None:
        while self.workers:
            self.stop_worker(number=0)

    def _with_open_gate(self, call: Callable[[], object]) -> None:
        """Errands need not wait meanwhile."""
        self.portal.call(self.desk.gate.set)
        call()
        self.desk.gate = anyio.Event()

    @rule(app=APPS)
    def everything_due_runs(self, app: int) -> None:
        if not self.workers:
            self.start_worker(app=app, concurrency=100, has_grace=True)
        self.tell("everything due runs")
        self._with_open_gate(partial(self.check, self._until_nothing_is_due))
        self.check(self.all_is_told, self.app(app))

    async def _until_nothing_is_due(self) -> None:
        due: list[str] = []

        async def has_run() -> bool:
            due.clear()  # a look that fails has its own message
            due.extend(self.model.due((await self._look()).records))
            return not due

        try:
            await eventually(has_run, within=WITHIN)
        except AssertionError as exc:
            if due:
                raise AssertionError(f"never run: {due}") from exc
            raise

    @invariant()
    def what_is_seen_is_what_must_be(self) -> None:
        self.check(self._look)

    async def _look(self) -> Seen:
        effects, events = await self._effects(), await self._events()
        records = await self.app(0).jobs.find(limit=100_000)
        seen = Seen(records, effects, await self._effects(), events, await self._events())
        self.model.compare(seen, working=bool(self.workers), worked=self.worked)
        self.worked = bool(self.workers)
        return seen

    async def _effects(self) -> list[str]:
        return [row["what"] for row in await self.admin.fetch("SELECT what FROM effect ORDER BY number")]

    async def _events(self) -> dict[str, Sequence[StoredEvent]]:
        return {board: await self.app(1).events.load(StreamId("Board", board)) for board in self.boards}
