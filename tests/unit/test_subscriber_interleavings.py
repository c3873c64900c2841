"""One subscriber that takes events in order, in memory, whatever happens to its jobs and whoever appends meanwhile."""

import asyncio
from collections import defaultdict
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any, TypeVar

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from eventflow import (
    Aggregate,
    App,
    Command,
    CommandContext,
    Event,
    EventFlow,
    Identity,
    JobRecord,
    JobState,
    ManualClock,
    OnError,
    RetryPolicy,
    StreamId,
    SubscriberContext,
    WorkerId,
    applies,
)
from eventflow.eventstore import Changes
from eventflow.jobs import Ending, InMemoryJobScheduler, Settlement, WorkerRecord

T = TypeVar("T")


class TallyId(Identity):
    """Of a tally."""


class Added(Event):
    """What the subscriber wants; how it fares with it, attempt by attempt."""

    fates: list[str]


class Checked(Event):
    """What it does not want."""


class Tally(Aggregate[TallyId]):
    """Emits what it is told to."""

    @applies
    def _happened(self, event: Added | Checked) -> None: ...


class Append(Command[TallyId]):
    """Of each event what the subscriber will do with it; ``None``: it does not want it."""

    events: list[list[str] | None]


class RefusedError(Exception):
    """Counts as done."""


FATES = st.sampled_from(["fail", "ignore", "die", "append", "append elsewhere"])
"""What an attempt does; one beyond the list succeeds."""
EVENTS = st.lists(st.none() | st.just([]) | st.lists(FATES, max_size=3), min_size=1, max_size=3)
TALLIES = [TallyId.new(), TallyId.new()]
SUBSCRIBER = "Subscriber:note"
LIVE = (JobState.WAITING, JobState.RUNNING, JobState.DEAD)


class DeadError(Exception):
    """Not worth another attempt."""


class Interleavings(RuleBasedStateMachine):
    """
    Appends, runs one job at a time, cancels, and deletes dead letters.

    Attributes:
        dealt: By aggregate, the numbers of the events that are over, in that order: seen, or left out.
        seen: Of these, the ones that the subscriber has dealt with.
        left_out: And the others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.opened = AsyncExitStack()
        self.dealt: dict[str, list[int]] = defaultdict(list)
        self.seen: dict[str, list[int]] = defaultdict(list)
        self.left_out: dict[str, list[int]] = defaultdict(list)
        self.app: App = self.run(self.opened.enter_async_context(self.flow().open("memory:", clock=ManualClock())))
        assert isinstance(self.app.jobs, InMemoryJobScheduler)
        self.scheduler = self.app.jobs

    def flow(self) -> EventFlow:
        """Tallies and the subscriber."""
        flow = EventFlow("tallies")
        flow.command_handler(append)
        retry = RetryPolicy(
            max_attempts=9, base=timedelta(0), on={RefusedError: OnError.IGNORE, DeadError: OnError.DEAD_LETTER}
        )

        @flow.subscriber(ordered=True, retry=retry)
        async def note(event: Added, context: SubscriberContext) -> None:
            fate = event.fates[context.attempt - 1] if context.attempt <= len(event.fates) else None
            await self.meet(fate, context)

        return flow

    async def meet(self, fate: str | None, context: SubscriberContext) -> None:
        """What the subscriber does."""
        of, number = context.aggregate_id, context.stream_version
        if fate == "fail":
            raise ConnectionResetError
        if fate == "die":
            raise DeadError
        if fate == "ignore":
            self.over(of, number, self.left_out)
            raise RefusedError
        if fate is not None:
            [other] = [tally for tally in TALLIES if tally != of]
            to = other if fate == "append elsewhere" else TallyId(of)
            await self.app.commands.publish(Append(aggregate_id=to, events=[[], None, []]))
        self.over(of, number, self.seen)

    def over(self, of: str, number: int, how: dict[str, list[int]]) -> None:
        """An event will not come again."""
        self.dealt[of].append(number)
        how[of].append(number)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    def teardown(self) -> None:
        try:
            while self.run(self.run_one()):
                self.nothing_is_skipped_or_comes_twice()
            for tally in TALLIES:
                wanted, live = self.wanted(tally), self.live(tally)
                if live:
                    [dead] = live
                    assert dead.state is JobState.DEAD
                    assert wanted[len(self.dealt[tally])] == dead.payload["stream_version"]
                else:
                    assert self.dealt[tally] == wanted
                assert self.seen[tally] == [n for n in self.dealt[tally] if n not in self.left_out[tally]]
        finally:
            self.run(self.opened.aclose())
            self.runner.close()

    @rule(to=st.sampled_from(TALLIES), events=EVENTS)
    def append(self, to: TallyId, events: list[list[str] | None]) -> None:
        self.run(self.app.commands.publish(Append(aggregate_id=to, events=events)))

    @rule()
    def run_a_job(self) -> None:
        self.run(self.run_one())

    @precondition(lambda self: self.jobs(JobState.WAITING))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.jobs(JobState.WAITING)))
        self.run(self.app.jobs.cancel(job.id))
        self._left_out(job)

    @precondition(lambda self: self.jobs(JobState.DEAD))
    @rule(data=st.data())
    def delete_dead_letter(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.jobs(JobState.DEAD)))
        del self.scheduler._memory._rows[job.id]
        self._left_out(job)

    def _left_out(self, job: JobRecord) -> None:
        if not job.payload.get("passes_over"):
            self.over(job.payload["aggregate_id"], job.payload["stream_version"], self.left_out)

    @invariant()
    def nothing_is_skipped_or_comes_twice(self) -> None:
        for tally in TALLIES:
            dealt = self.dealt[tally]
            assert dealt == self.wanted(tally)[: len(dealt)]
            assert len(self.live(tally)) <= 1, "only the job of the next event exists"

    def jobs(self, state: JobState | None = None) -> list[JobRecord]:
        """The subscriber's jobs."""
        return list(self.run(self.app.jobs.find(name=SUBSCRIBER, state=state, limit=1000)))

    def live(self, tally: TallyId) -> list[JobRecord]:
        """Those of one aggregate that have not ended well."""
        return [job for job in self.jobs() if job.payload["aggregate_id"] == tally and job.state in LIVE]

    def wanted(self, tally: TallyId) -> list[int]:
        """The numbers of the events that the subscriber wants."""
        events = self.run(self.app.events.load(StreamId("Tally", tally)))
        return [event.stream_version for event in events if event.name == "Added"]

    async def run_one(self) -> int:
        """Run the first job that is due; how many there were."""
        scheduler, me = self.scheduler, WorkerId.new()

        async def end(settlement: Settlement, changes: Changes, connection: object) -> None:
            await scheduler._commits.commit(changes, settlement.follow_ups, ends=Ending(me, settlement))

        store = scheduler._memory
        await store.open_worker(WorkerRecord(me, "memory", 0, "", None, 1))
        batch = await store.claim(me, scheduler._interest, ready=1, ahead=0, horizon_us=0)
        for claim in batch.jobs:
            settlement = await scheduler._runner.run(claim, started_us=batch.now_us, end=end)
            if not settlement.is_written:
                await store.settle(me, [settlement])
        await store.close_worker(me)
        return len(batch.jobs)


async def append(tally: Tally, command: Append, context: CommandContext) -> None:
    """Handles the command."""
    for fates in command.events:
        tally.emit(Checked() if fates is None else Added(fates=fates))


def test_subscriber_sees_what_it_wants_once_in_order_but_for_what_was_left_out() -> None:
    """Cancelled, ignored and deleted events are passed over; a dead letter holds up its own aggregate, and only it."""
    run_state_machine_as_test(  # pyright: ignore[reportUnknownMemberType]
        Interleavings,
        settings=settings(
            max_examples=60,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate, Phase.shrink],
        ),
    )
