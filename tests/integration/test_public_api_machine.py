"""An application used in any order: what its calls answered is what there is, and what has run did so once."""

import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)

from eventflow import (
    App,
    CancelOutcome,
    DatabaseError,
    DomainError,
    DuplicateOperationError,
    JobId,
    JobState,
    RescheduleOutcome,
    SourceId,
)
from eventflow.postgres import PooledConnection
from tests.support.errand_machine import APPS, WITHIN, ErrandMachine
from tests.support.errands import Board, Draft, Errand, Plan, Post, When
from tests.support.journal import ENDED
from tests.support.postgres import PostgresServer
from tests.support.waiting import eventually

T = TypeVar("T")

EXAMPLES = int(os.environ.get("EVENTFLOW_TEST_EXAMPLES", "0"))
"""So many machines, others each time; by default few, and always the same."""
FEW = 16
STEPS = 25

WHEN = st.sampled_from(When)
PLANS: st.SearchStrategy[Plan] = st.deferred(
    lambda: st.builds(
        Plan,
        fails=st.sampled_from([0, 0, 1, 3]),
        ends=st.sampled_from(["well", "well", "well", "refused", "ignored"]),
        writes=st.booleans(),
        waits=st.sampled_from([False, False, True]),
        leads_to=st.just(()) | st.lists(PLANS, max_size=2).map(tuple),
        when=WHEN,
    )
)
COMMANDS = st.builds(
    Draft,
    board=st.integers(0, 1),
    posts=st.integers(0, 3),
    refused=st.sampled_from([False, False, False, True]),
    writes=st.booleans(),
    leads_to=st.none() | PLANS,
)
ENDS = st.sampled_from(["commits", "is rolled back", "has failed"])
"""What becomes of a transaction; the last one without its block noticing."""
MAYBE_ENDS = st.none() | ENDS


class UndoneError(Exception):
    """Rolls a transaction back."""


class Usage(ErrandMachine):
    """
    Calls what is public, with workers and without.

    Rules draw from what was called before, and never from what workers have done meanwhile.

    Attributes:
        labels: So many were given.
        thought_of: So many commands were.
        cursor: Behind the events that were read.
        read: Those: board and version.
    """

    jobs: Bundle[str] = Bundle("jobs")
    operations: Bundle[Post] = Bundle("operations")

    def __init__(self, server: PostgresServer) -> None:
        super().__init__(server)
        self.labels = 0
        self.thought_of = 0
        self.cursor = ""
        self.read: list[tuple[str, int]] = []

    def run_the_rest(self) -> None:
        """Whatever still waits runs at last; a worker finds nothing more to do then."""
        self.everything_due_runs(app=0)
        self.stop_all()
        for entry in self.model.entries.values():
            if not entry.has_ended:
                self.check(self._reschedule, self.app(0), entry.label, When.NOW)
        self.everything_due_runs(app=0)
        self.stop_all()

    # Jobs

    @rule(target=jobs, app=APPS, plan=PLANS, when=WHEN)
    def schedule(self, app: int, plan: Plan, when: When) -> str:
        return self._schedule(app, [self._errand(plan)], when)[0]

    @rule(target=jobs, app=APPS, plans=st.lists(PLANS, max_size=3), when=WHEN, many=st.booleans(), ends=MAYBE_ENDS)
    def schedule_some(
        self, app: int, plans: list[Plan], when: When, many: bool, ends: str | None
    ) -> MultipleResults[str]:
        return multiple(*self._schedule(app, [*map(self._errand, plans)], when, many=many, ends=ends))

    @rule(target=jobs, app=APPS, chosen=st.lists(operations, min_size=1, max_size=3), when=WHEN, many=st.booleans())
    def schedule_commands(self, app: int, chosen: list[Post], when: When, many: bool) -> MultipleResults[str]:
        return multiple(*self._schedule(app, chosen, when, many=many))

    def _errand(self, plan: Plan) -> Errand:
        return Errand(label=self._label(), plan=plan)

    def _label(self) -> str:
        self.labels += 1
        return f"job {self.labels}"

    def _schedule(
        self,
        app: int,
        messages: Sequence[Errand] | Sequence[Post],
        when: When,
        *,
        many: bool = False,
        ends: str | None = None,
    ) -> list[str]:
        labels = [message.label if isinstance(message, Errand) else self._label() for message in messages]

        self.tell("schedule", list(zip(labels, messages, strict=True)), when, f"{many=} {ends=}")

        ids: list[JobId] = []

        async def schedule(connection: "PooledConnection | None") -> Sequence[JobId]:
            to = self.app(app)
            if many:
                return await _schedule_many(to, messages, when, connection)
            return [await _schedule_one(to, message, when, connection) for message in messages]

        async def schedule_all() -> None:
            ids.extend(await self._with_transaction(self.app(app), schedule, ends if messages else None))

        self.check(schedule_all)
        if self.failure is not None:
            return labels
        for label, message, job_id in zip(labels, messages, ids, strict=True):
            if ends in (None, "commits"):
                self.model.add(message, label, when, job_id)
            else:
                self.model.never[label] = job_id
        return labels

    async def _with_transaction(
        self, app: App, body: "Callable[[PooledConnection | None], Awaitable[T]]", ends: str | None
    ) -> T:
        """In none, or in one that ends so."""
        if ends is None:
            return await body(None)
        results: list[T] = []
        try:
            async with app.transaction() as connection:
                results.append(await body(connection))
                if ends == "is rolled back":
                    raise UndoneError
                if ends == "has failed":
                    with suppress(asyncpg.DivisionByZeroError):
                        await connection.execute("SELECT 1 / 0")
        except UndoneError:
            pass
        except DatabaseError:
            if ends != "has failed":
                raise
        else:
            assert ends == "commits", "nobody was told that nothing was committed"
        return results[0]

    @rule(app=APPS, job=jobs)
    def cancel(self, app: int, job: str) -> None:
        self.check(self._cancel, self.app(app), job)

    async def _cancel(self, app: App, label: str) -> None:
        job_id, entry = self._id_of(label), self.model.entries.get(label)
        outcome = await app.jobs.cancel(job_id)
        self.tell("cancel", label, outcome)
        if outcome is CancelOutcome.NOT_FOUND:
            await self._is_over(app, label)
            return
        assert entry is not None
        assert not entry.has_ended
        if outcome is CancelOutcome.CANCELLED:
            self.model.cancel(entry)
            return
        assert self.workers
        entry.asked = True
        if isinstance(entry.about, Errand) and entry.about.plan.waits:  # at the gate, or soon to be

            async def request_is_obeyed() -> bool:
                return await self._has_ended(app, job_id)

            await eventually(request_is_obeyed, within=WITHIN)

    @rule(app=APPS, job=jobs, when=WHEN)
    def reschedule(self, app: int, job: str, when: When) -> None:
        self.check(self._reschedule, self.app(app), job, when)

    async def _reschedule(self, app: App, label: str, when: When) -> None:
        job_id, entry = self._id_of(label), self.model.entries.get(label)
        outcome = await app.jobs.reschedule(job_id, at=when.options.get("at"), delay=when.options.get("delay"))
        self.tell("reschedule", label, when, outcome)
        if outcome is RescheduleOutcome.NOT_FOUND:
            await self._is_over(app, label)
            return
        assert entry is not None
        assert not entry.has_ended
        is_later = when is When.LATER
        if outcome is RescheduleOutcome.RESCHEDULED:
            self.model.move(entry, later=is_later)
        else:
            assert self.workers
            assert entry.later is not True
            if is_later:
                entry.later = None

    async def _is_over(self, app: App, label: str) -> None:
        """It has ended, or never was; which is all that is not found."""
        record = await app.jobs.get(self._id_of(label))
        assert record is None if label in self.model.never else record is not None and record.state in ENDED

    async def _has_ended(self, app: App, job_id: JobId) -> bool:
        record = await app.jobs.get(job_id)
        return record is not None and record.state in ENDED

    @rule(app=APPS, job=jobs, state=st.sampled_from(JobState))
    def look_up(self, app: int, job: str, state: JobState) -> None:
        self.check(self._look_up, self.app(app), job, state)

    async def _look_up(self, app: App, label: str, state: JobState) -> None:
        job_id = self._id_of(label)
        record = await app.jobs.get(job_id)
        assert (record is None) == (label in self.model.never)
        found = await app.jobs.find(state=state, name="Errand", limit=1000)
        assert {(each.state, each.name) for each in found} <= {(state, "Errand")}
        if not self.workers and record is not None:
            assert (record in found) == (record.state is state and record.name == "Errand")

    # Commands

    @initialize(target=operations, commands=st.lists(COMMANDS, min_size=2, max_size=2))
    def think_of_two(self, commands: list[Draft]) -> MultipleResults[Post]:
        return multiple(*map(self._command, commands))

    @rule(target=operations, command=COMMANDS)
    def think_of(self, command: Draft) -> Post:
        return self._command(command)

    def _command(self, command: Draft) -> Post:
        self.thought_of += 1
        return command.about(self.boards[command.board], SourceId(f"operation {self.thought_of}"))

    @rule(app=APPS, operation=operations, ends=MAYBE_ENDS)
    def publish(self, app: int, operation: Post, ends: str | None) -> None:
        self.check(self._publish, self.app(app), operation, ends)

    async def _publish(self, app: App, command: Post, ends: str | None) -> None:
        known = command.source_id in self.model.results
        self.tell("publish", command, ends)

        async def publish(connection: "PooledConnection | None") -> int:
            return await app.commands.publish(command, connection=connection)

        try:
            result = await self._with_transaction(app, publish, ends)
        except DomainError:
            assert command.refused
        except DuplicateOperationError as exc:
            assert known or self.model.may_be_done_by_a_job(command), "it was never done"
            self.model.done(command, exc.result)
        else:
            assert not known, "it is done a second time"
            assert not command.refused
            if ends in (None, "commits"):
                self.model.done(command, result)
            if ends is None:  # not in the caller's transaction
                versions = range(result + 1, result + command.posts + 1)
                assert {(command.aggregate_id, version) for version in versions} <= set(self.desk.heard)

    # What is looked at

    @rule(app=APPS, limit=st.integers(1, 5))
    def read_on(self, app: int, limit: int) -> None:
        self.check(self._read_on, self.app(app), limit)

    async def _read_on(self, app: App, limit: int) -> bool:
        page = await app.events.read_all(self.cursor, limit=limit)
        self.cursor = page.cursor
        self.read += [(event.stream.aggregate_id, event.stream_version) for event in page.events]
        for board in self.boards:
            versions = [version for of, version in self.read if of == board]
            assert versions == list(range(1, len(versions) + 1)), "not each once and in order"
        return page.is_last

    async def all_is_told(self, app: App) -> None:
        """Nothing is due: who reads on sees every event, and so does who loads a board; nobody heard of one twice."""
        while not await self._read_on(app, 1000):
            pass
        assert len(self.read) == self.model.total()
        for board in self.boards:
            loaded = await app.aggregates.load(Board, board)
            assert loaded.posts == loaded.stream_version == sum(of == board for of, _ in self.read)
        assert len(set(self.desk.heard)) == len(self.desk.heard), "an inline subscriber was called again"
        assert set(self.desk.heard) <= set(self.read)

    def _id_of(self, label: str) -> JobId:
        job_id = self.model.never.get(label) or self.model.entries[label].id
        assert job_id is not None
        return job_id


async def _schedule_one(app: App, message: Errand | Post, when: When, connection: "PooledConnection | None") -> JobId:
    if isinstance(message, Post):
        return await app.commands.schedule(message, connection=connection, **when.options)
    return await app.jobs.schedule(message, connection=connection, **when.options)


async def _schedule_many(
    app: App, messages: Sequence[Errand] | Sequence[Post], when: When, connection: "PooledConnection | None"
) -> Sequence[JobId]:
    commands = [message for message in messages if isinstance(message, Post)]
    if commands:
        return await app.commands.schedule_many(commands, connection=connection, **when.options)
    errands = [message for message in messages if isinstance(message, Errand)]
    return await app.jobs.schedule_many(errands, connection=connection, **when.options)


@pytest.mark.timeout(600 + 10 * EXAMPLES)  # a failure is made small
def test_calls_have_the_effects_they_answered(postgres: PostgresServer, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is called in whatever order; ``EVENTFLOW_TEST_EXAMPLES=500`` plays so many, others each time."""
    caplog.set_level(logging.CRITICAL, "eventflow")  # of errors that are meant

    class OnThisServer(Usage):
        def __init__(self) -> None:
            super().__init__(postgres)

    run_state_machine_as_test(  # pyright: ignore[reportUnknownMemberType]
        OnThisServer,
        settings=settings(
            max_examples=EXAMPLES or FEW,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=not EXAMPLES,
            database=None,
            report_multiple_bugs=False,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
