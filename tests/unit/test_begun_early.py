"""Jobs that are begun before they have a slot: their aggregates are loaded while others commit."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio.lowlevel
import pytest

from eventflow import CommandContext, EventFlow, JobContext, OptimisticConcurrencyError
from eventflow.clock import Clock
from eventflow.eventstore import Changes, History, InMemoryEventStore, ReceiptKey, StreamId
from eventflow.jobs.records import ClaimedJob, Outcome
from tests.unit.bench import Act, OrderId, PlaceOrder, others_rest
from tests.unit.slot_rig import PATIENCE, Rig
from tests.unit.test_aggregate import Order, OrderPlaced


class Desk:
    """
    Slots for commands whose commits wait for the test.

    Attributes:
        journal: What was done, and to which order.
        known: How many jobs were here when the last commit began.
        conflicts: So many commits fail by a conflict.
        handlers_wait: Whether they let others go on.
    """

    def __init__(self, *, concurrency: int = 1, timeout: timedelta | None = None) -> None:
        self.journal: list[str] = []
        self.known = 0
        self.conflicts = 0
        self.handlers_wait = True
        self.most = 0
        self._inside = 0
        self._commits = anyio.Semaphore(0)
        self._names: dict[str, str] = {}
        flow = EventFlow("desk")
        flow.command_handler(timeout=timeout)(self._place)
        self.rig = Rig(self._act, concurrency=concurrency, flow=flow, commit=self._commit, events=self._events)
        self.slots = self.rig.slots

    def claim(self, name: str, **changes: Any) -> ClaimedJob:
        """A command on the order of this name."""
        order = next((order for order, known in self._names.items() if known == name), None) or OrderId.new()
        self._names[str.__str__(order)] = name
        return self.rig.bench.claim(PlaceOrder(aggregate_id=OrderId(order), total_cents=1), **changes)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """Let it work."""
        async with self.rig.open():
            yield

    async def let_commit(self, number: int = 1) -> None:
        """So many commits more may go on."""
        for _ in range(number):
            self._commits.release()
        await others_rest()

    def note(self, what: str, of: str) -> None:
        """Write it into the journal."""
        self.journal.append(f"{what} {self._names[of]}")

    def _events(self, clock: Clock) -> InMemoryEventStore:
        return _Seen(clock, self)

    async def _place(self, order: Order, command: PlaceOrder, context: CommandContext) -> int:
        self.note("handle", str.__str__(command.aggregate_id))
        self._inside += 1
        self.most = max(self.most, self._inside)
        try:
            if self.handlers_wait:
                await anyio.lowlevel.checkpoint()
        finally:
            self._inside -= 1
        order.emit(OrderPlaced(total_cents=command.total_cents))
        return 0

    async def _act(self, context: JobContext) -> None:
        self.journal.append("act")

    async def _commit(self, changes: Changes) -> None:
        assert changes.stream is not None
        self._inside += 1
        self.known = len(list(self.slots.ids()))
        try:
            self.note("commit", changes.stream.aggregate_id)
            await self._commits.acquire()
        finally:
            self._inside -= 1
        if self.conflicts:
            self.conflicts -= 1
            raise OptimisticConcurrencyError(changes.stream, changes.expected_version)
        self.rig.bench.events.write(changes)


class _Seen(InMemoryEventStore):
    def __init__(self, clock: Clock, desk: Desk) -> None:
        super().__init__(clock)
        self._desk = desk

    async def look(self, stream: StreamId | None, receipt: ReceiptKey, **options: Any) -> History:
        assert stream is not None
        self._desk.note("look", stream.aggregate_id)
        return await super().look(stream, receipt, **options)


async def test_next_aggregate_is_loaded_while_a_command_commits() -> None:
    """Its handler waits until the one before has committed; more than one is not begun for each that commits."""
    desk = Desk()

    async with desk.open():
        desk.slots.put(desk.claim(name) for name in "abc")
        await others_rest()
        assert desk.journal == ["look a", "handle a", "commit a", "look b"]
        assert (desk.slots.free, desk.slots.in_line) == (0, 1)
        assert len(list(desk.slots.ids())) == 3
        await desk.let_commit()
        assert desk.journal[4:] == ["handle b", "commit b", "look c"]
        await desk.let_commit(2)
        assert await desk.slots.wait_until_idle(1)

    assert desk.journal[7:] == ["handle c", "commit c"]
    assert desk.rig.completions.settlements == []
    assert (desk.slots.free, desk.rig.finished) == (1, 3)


@pytest.mark.parametrize("handlers_wait", [True, False])
async def test_nothing_is_begun_early_while_slots_are_free(*, handlers_wait: bool) -> None:
    """It would wait for the slot of another, and be given back, beside one that it could have had."""
    desk = Desk(concurrency=20)
    desk.handlers_wait = handlers_wait

    async with desk.open():
        desk.slots.put(desk.claim(str(number)) for number in range(20))
        await others_rest()
        assert sum(entry.startswith("commit") for entry in desk.journal) == 20
        await desk.let_commit(20)
        assert await desk.slots.wait_until_idle(1)

    assert desk.slots.free == 20


async def test_command_on_the_same_aggregate_is_loaded_after_the_commit() -> None:
    """It waits for its turn, as ever: loaded before, it would only find a conflict."""
    desk = Desk()

    async with desk.open():
        desk.slots.put(desk.claim(name) for name in "aa")
        await others_rest()
        assert desk.journal == ["look a", "handle a", "commit a"]
        await desk.let_commit(2)
        assert await desk.slots.wait_until_idle(1)

    assert desk.journal[3:] == ["look a", "handle a", "commit a"]


async def test_command_that_commits_again_begins_no_other() -> None:
    """One waits for its slot already."""
    desk = Desk()
    desk.conflicts = 1

    async with desk.open():
        desk.slots.put(desk.claim(name) for name in "abc")
        await desk.let_commit()
        while desk.journal.count("commit a") < 2:
            desk.rig.bench.clock.advance(0.001)
            await others_rest()
        assert desk.journal == ["look a", "handle a", "commit a", "look b", "look a", "handle a", "commit a"]
        await desk.let_commit(3)
        assert await desk.slots.wait_until_idle(1)

    assert desk.rig.finished == 3


@pytest.mark.parametrize("concurrency", [1, 2, 5])
async def test_no_more_handle_and_commit_at_once_than_there_are_slots(concurrency: int) -> None:
    """Also when every commit fails by a conflict at first, and its handler runs once more."""
    desk = Desk(concurrency=concurrency)
    desk.conflicts = 5

    async with desk.open():
        desk.slots.put(desk.claim(str(number)) for number in range(20))
        await others_rest()
        while [*desk.slots.ids()]:
            desk.rig.bench.clock.advance(PATIENCE / 5)
            await desk.let_commit()

    assert desk.most == concurrency
    assert desk.slots.free == concurrency
    assert desk.conflicts == 0


async def test_job_that_has_nothing_to_load_waits_for_its_slot() -> None:
    """What it does is the handler's, and its time is not taken by a commit that lasts."""
    desk = Desk()

    async with desk.open():
        desk.slots.put([desk.claim("a"), desk.rig.bench.claim(Act())])
        await others_rest()
        assert desk.journal == ["look a", "handle a", "commit a"]
        await desk.let_commit()
        assert await desk.slots.wait_until_idle(1)

    assert desk.journal[3:] == ["act"]
    assert desk.rig.outcomes == [Outcome.SUCCEEDED]


async def test_time_of_a_command_that_has_a_limit_begins_with_its_slot() -> None:
    """It would end before its handler has begun, for a commit that is not its own."""
    desk = Desk(timeout=timedelta(seconds=PATIENCE / 2))

    async with desk.open():
        desk.slots.put([desk.claim("a"), desk.claim("b")])
        await others_rest()
        assert desk.journal == ["look a", "handle a", "commit a"]
        desk.rig.bench.clock.advance(PATIENCE * 0.9)
        await desk.let_commit(2)
        assert await desk.slots.wait_until_idle(1)

    assert desk.journal[3:] == ["look b", "handle b", "commit b"]


async def test_job_that_was_begun_and_waits_too_long_is_given_back() -> None:
    """As from the line: another worker may have a slot. It has not started, and leaves no other one waiting."""
    desk = Desk()
    first, second, third = (desk.claim(name) for name in "abc")

    async with desk.open():
        desk.slots.put([first, second])
        await others_rest()
        desk.rig.bench.clock.advance(PATIENCE)
        await others_rest()
        given_back = list(desk.rig.completions.settlements)
        desk.slots.put([third])
        await desk.let_commit(2)
        assert await desk.slots.wait_until_idle(1)

    assert [(end.claim, end.outcome, end.started_us) for end in given_back] == [(second, Outcome.RELEASED, None)]
    assert desk.journal == ["look a", "handle a", "commit a", "look b", "look c", "handle c", "commit c"]
    assert desk.slots.free == 1


async def test_stopping_worker_gives_back_what_it_has_begun_early() -> None:
    """Like the line behind it; what commits ends well."""
    desk = Desk()

    async with desk.open():
        desk.slots.put(desk.claim(name) for name in "abc")
        await others_rest()
        in_line = desk.slots.take_line()
        await desk.let_commit()
        assert await desk.slots.wait_until_idle(1)

    assert len(in_line) == 1
    assert desk.journal == ["look a", "handle a", "commit a", "look b"]
    assert desk.rig.outcomes == [Outcome.RELEASED]
    assert desk.slots.free == 1


async def test_job_is_known_before_its_task_has_begun() -> None:
    """Or a look for claims whose answer was lost would take it for one of them, and it would run twice."""
    desk = Desk()

    async with desk.open():
        desk.slots.put(desk.claim(name) for name in "abc")
        await others_rest()
        assert desk.known == 3
        await desk.let_commit(3)
        assert await desk.slots.wait_until_idle(1)


async def test_job_that_was_begun_early_can_be_cancelled() -> None:
    """Its handler never runs; those behind it do."""
    desk = Desk()
    first, second, third = (desk.claim(name) for name in "abc")

    async with desk.open():
        desk.slots.put([first, second, third])
        await others_rest()
        begun = desk.slots.find(second.id)
        assert begun is not None
        begun.cancel(Outcome.CANCELLED)
        await others_rest()
        assert desk.rig.outcomes == [Outcome.CANCELLED]
        await desk.let_commit(2)
        assert await desk.slots.wait_until_idle(1)

    assert desk.journal[-3:] == ["look c", "handle c", "commit c"]
    assert desk.slots.free == 1


async def test_job_that_ends_before_its_slot_takes_none() -> None:
    """A command that was done before has nothing to handle."""
    desk = Desk()
    done = desk.claim("a")

    async with desk.open():
        desk.slots.put([done])
        await desk.let_commit()
        desk.slots.put([desk.claim("b"), done, desk.claim("c")])
        await others_rest()
        assert desk.journal[3:] == ["look b", "handle b", "commit b", "look a"]
        assert desk.rig.outcomes == [Outcome.SUCCEEDED]
        await desk.let_commit(2)
        assert await desk.slots.wait_until_idle(1)

    assert desk.journal[-2:] == ["handle c", "commit c"]
    assert desk.slots.free == 1
