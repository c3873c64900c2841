"""Errands that fail, wait, write and lead to others, boards with subscribers, and a model of what must come of them."""

from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Literal

import anyio
import msgspec

from eventflow import (
    Aggregate,
    Command,
    CommandContext,
    DomainError,
    Event,
    EventFlow,
    Identity,
    Job,
    JobContext,
    JobId,
    JobRecord,
    JobState,
    OnError,
    RetryPolicy,
    Services,
    SourceId,
    StoredEvent,
    SubscriberContext,
    applies,
)
from eventflow.scheduling import ScheduleOptions
from tests.support.journal import ENDED

MAX_ATTEMPTS = 3
HALF_AN_HOUR = timedelta(minutes=30)
CREATE_EFFECTS = """
CREATE TABLE effect (number bigint GENERATED ALWAYS AS IDENTITY, what text NOT NULL);
GRANT SELECT, INSERT ON effect TO PUBLIC
"""
WRITE_EFFECT = "INSERT INTO effect (what) VALUES ($1)"


class When(Enum):
    """When a job is due."""

    NOW = "now"
    LONG_AGO = "long ago"
    SOON = "soon"
    LATER = "later"
    """Long after the test."""

    @property
    def options(self) -> ScheduleOptions:
        """For any call that schedules."""
        return _OPTIONS[self]


_OPTIONS: dict[When, ScheduleOptions] = {
    When.NOW: {"delay": timedelta(0)},
    When.LONG_AGO: {"at": datetime(2001, 1, 1, tzinfo=UTC)},
    When.SOON: {"delay": timedelta(milliseconds=80)},
    When.LATER: {"delay": timedelta(hours=1)},
}


class Plan(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """
    What an errand does.

    Attributes:
        fails: So many attempts.
        ends: What the attempt after them does.
        writes: A row in its transaction.
        waits: At the gate, after it has written and scheduled.
        leads_to: Errands that it schedules, in every attempt.
        when: These are due.
    """

    fails: int = 0
    ends: Literal["well", "refused", "ignored"] = "well"
    writes: bool = False
    waits: bool = False
    leads_to: tuple["Plan", ...] = ()
    when: When = When.NOW

    @property
    def fate(self) -> tuple[JobState, int]:
        """How it ends, and with which attempt."""
        if self.fails >= MAX_ATTEMPTS:
            return JobState.DEAD, MAX_ATTEMPTS
        return _ENDINGS[self.ends], self.fails + 1


_ENDINGS = {"well": JobState.SUCCEEDED, "refused": JobState.DEAD, "ignored": JobState.IGNORED}


class UnimportantError(Exception):
    """Counts as done."""


class Errand(Job):
    """Follows its plan."""

    label: str
    plan: Plan

    async def execute(self, context: JobContext) -> None:
        desk, plan = await context.services.aget(Desk), self.plan
        with desk.busy(self.label, context.attempt):
            for follower in self.followers():
                context.schedule(follower, **plan.when.options)
            if plan.writes:
                await write(context, self.label)
            if plan.waits:
                await desk.gate.wait()
            if context.attempt <= plan.fails:
                raise ConnectionResetError
            if plan.ends == "refused":
                raise DomainError("refused")
            if plan.ends == "ignored":
                raise UnimportantError

    def followers(self) -> "list[Errand]":
        """What it leads to."""
        return [Errand(label=f"{self.label}.{n}", plan=plan) for n, plan in enumerate(self.plan.leads_to, start=1)]


class BoardId(Identity):
    """Of a board."""


class Posted(Event):
    """By which operation."""

    operation: str


class Board(Aggregate[BoardId]):
    """Counts its posts."""

    posts: int = 0

    @applies
    def _posted(self, event: Posted) -> None:
        self.posts += 1


class Post(Command[BoardId, int]):
    """
    Posts, and returns the board's version before.

    Attributes:
        posts: So many times.
        refused: Or it is refused.
        writes: A row in its transaction.
        leads_to: An errand that it schedules.
    """

    posts: int
    refused: bool
    writes: bool
    leads_to: Plan | None

    def followers(self) -> list[Errand]:
        """What it leads to."""
        return [] if self.leads_to is None else [Errand(label=f"{self.source_id}.1", plan=self.leads_to)]


class Draft(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """A command, but for the ids in it."""

    board: int
    posts: int = 1
    refused: bool = False
    writes: bool = False
    leads_to: Plan | None = None

    def about(self, board: BoardId, source_id: SourceId) -> Post:
        """The command."""
        return Post(
            aggregate_id=board,
            source_id=source_id,
            posts=self.posts,
            refused=self.refused,
            writes=self.writes,
            leads_to=self.leads_to,
        )


class Desk:
    """
    What handlers did in this process.

    Attributes:
        started: Attempts of errands, by label, in order.
        active: How many errands run at present.
        heard: Events that the inline subscriber got.
        gate: Errands wait at it.
    """

    def __init__(self) -> None:
        self.started: dict[str, list[int]] = {}
        self.active = 0
        self.heard: list[tuple[str, int]] = []
        self.gate = anyio.Event()

    @asynccontextmanager
    async def lifespan(self, services: Services) -> AsyncGenerator[None]:
        """Offers itself to handlers."""
        services.register_value(Desk, self)
        yield

    def starts(self, label: str) -> int:
        """How often an errand was started."""
        return len(self.started.get(label, []))

    def busy(self, label: str, attempt: int) -> "_Busy":
        """While an attempt runs."""
        self.started.setdefault(label, []).append(attempt)
        return _Busy(self)


class _Busy:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def __enter__(self) -> None:
        self._desk.active += 1

    def __exit__(self, *exc: object) -> None:
        self._desk.active -= 1


def errand_flow(desk: Desk) -> EventFlow:
    """Errands and boards; one subscriber for each event, one in order, one inline."""
    flow = EventFlow("errands", lifespan=desk.lifespan)
    retry = RetryPolicy(max_attempts=MAX_ATTEMPTS, base=timedelta(0), on={UnimportantError: OnError.IGNORE})
    flow.job(retry=retry)(Errand)

    @flow.command_handler
    async def post(board: Board, command: Post, context: CommandContext) -> int:
        for follower in command.followers():
            context.schedule(follower)
        if command.writes:
            await write(context, command.source_id)
        for _ in range(command.posts):
            board.emit(Posted(operation=command.source_id))
        if command.refused:
            raise DomainError("refused")
        return board.stream_version

    @flow.subscriber(retry=retry)
    async def each(event: Posted, context: SubscriberContext) -> None:
        follower = follower_of(context.aggregate_id, context.stream_version)
        context.schedule(follower)
        await take("each", context)

    @flow.subscriber(retry=retry, ordered=True)
    async def line(event: Posted, context: SubscriberContext) -> None:
        await take("line", context)

    @flow.subscriber(inline=True)
    async def hear(event: Posted, context: SubscriberContext) -> None:
        desk.heard.append((context.aggregate_id, context.stream_version))

    return flow


def follower_of(board: str, version: int) -> Errand:
    """What a subscriber schedules for an event."""
    return Errand(label=f"after {board} {version}", plan=Plan())


def subscriber_attempts(version: int) -> int:
    """With which attempt subscribers are done with an event."""
    return 2 if version % 3 == 0 else 1


async def take(subscriber: str, context: SubscriberContext) -> None:
    """What subscribers do with an event."""
    await write(context, f"{subscriber} {context.aggregate_id} {context.stream_version}")
    if context.attempt < subscriber_attempts(context.stream_version):
        raise ConnectionResetError


async def write(context: JobContext | CommandContext | SubscriberContext, what: str) -> None:
    """Leave a row in the transaction of a handler."""
    await (await context.transaction()).execute(WRITE_EFFECT, str(what))


class Entry:
    """
    A job that must exist.

    Attributes:
        label: Tells it from all others.
        fate: Its state and attempt once it has run.
        state: As far as known; a running job is waiting here.
        later: It is not due in this test; ``None``: its worker was asked for that.
        asked: To be cancelled, by a request to its worker.
        settled_starts: No more attempts may start than these; ``None``: they may.
        about: What runs: an errand, a command, or a subscriber with board and version.
        id: ``None``: scheduled by a handler, and not seen yet.
    """

    def __init__(
        self,
        label: str,
        about: "Errand | Post | Turn",
        fate: tuple[JobState, int],
        *,
        later: bool = False,
        id: JobId | None = None,
    ) -> None:
        self.label = label
        self.about = about
        self.fate = fate
        self.later: bool | None = later
        self.id = id
        self.state = JobState.WAITING
        self.asked = False
        self.settled_starts: int | None = 0 if later else None

    @property
    def has_ended(self) -> bool:
        """It will not run any more."""
        return self.state in ENDED


class Turn(msgspec.Struct, frozen=True):
    """An event for a subscriber."""

    subscriber: str
    board: str
    version: int

    @property
    def label(self) -> str:
        """Of its job, and of what it writes."""
        return f"{self.subscriber} {self.board} {self.version}"


class Seen(msgspec.Struct, frozen=True):
    """
    What there is: the jobs at one instant, and the rest before and after it.

    Attributes:
        read: Events of each board, in order.
    """

    records: Sequence[JobRecord]
    effects_before: Sequence[str]
    effects_after: Sequence[str]
    read_before: Mapping[str, Sequence[StoredEvent]]
    read_after: Mapping[str, Sequence[StoredEvent]]


class Model:
    """
    What must be there, by what was answered to calls, and by what has run since.

    Attributes:
        entries: By label.
        never: Ids of what was rolled back, by label.
        results: Of the operations that are done, by source id; ``None``: not told.
    """

    def __init__(self, desk: Desk, boards: Sequence[BoardId]) -> None:
        self.entries: dict[str, Entry] = {}
        self.never: dict[str, JobId] = {}
        self.results: dict[str, object] = {}
        self._desk = desk
        self._effects = Counter[str]()
        self._events: dict[str, Counter[str]] = {board: Counter() for board in boards}
        self._labels: dict[JobId, str] = {}
        self._in_line: dict[str, int] = dict.fromkeys(boards, 0)
        self._new: list[Entry] = []

    def label_of(self, record: JobRecord) -> str:
        """Of the entry that a job must have."""
        payload: dict[str, Any] = record.payload
        if record.name.startswith("Subscriber:"):
            subscriber = record.name.removeprefix("Subscriber:")
            return Turn(subscriber, payload["aggregate_id"], payload["stream_version"]).label
        return payload["label"] if record.name == "Errand" else self._labels.get(record.id, record.id)

    def add(self, message: Errand | Post, label: str, when: When = When.NOW, id: JobId | None = None) -> None:
        """A job exists from now on."""
        if id is not None:
            self._labels[id] = label
        fate = message.plan.fate if isinstance(message, Errand) else _fate_of(message)
        self._add(Entry(label, message, fate, later=when is When.LATER, id=id))

    def _add(self, entry: Entry) -> None:
        assert entry.label not in self.entries
        self.entries[entry.label] = entry
        self._new.append(entry)

    def may_be_done_by_a_job(self, command: Post) -> bool:
        """Whether a job that is due may have done this operation since anybody looked."""
        return any(entry.about == command and entry.later is not True for entry in self.entries.values())

    def done(self, command: Post, result: object = None) -> None:
        """An operation is done, or was before; *result* as far as anybody was told."""
        known = self.results.get(command.source_id)
        assert None in (known, result) or known == result, f"returned {known}, and {result} when asked again"
        is_new = command.source_id not in self.results
        self.results[command.source_id] = known if result is None else result
        if not is_new:
            return
        if command.writes:
            self._effects[command.source_id] += 1
        for follower in command.followers():
            self.add(follower, follower.label)
        board, posted = command.aggregate_id, self._posted(command.aggregate_id)
        for version in range(posted + 1, posted + command.posts + 1):
            self._turn(Turn("each", board, version))
        if command.posts:
            self._events[board][command.source_id] += command.posts
        self._go_on(board)

    def _posted(self, board: str) -> int:
        return self._events[board].total()

    def _turn(self, turn: Turn) -> None:
        self._add(Entry(turn.label, turn, (JobState.SUCCEEDED, subscriber_attempts(turn.version))))

    def _go_on(self, board: str) -> None:
        """Only the job of the next event in line exists."""
        last = self._in_line[board]
        if last < self._posted(board) and (not last or self.entries[Turn("line", board, last).label].has_ended):
            self._in_line[board] += 1
            self._turn(Turn("line", board, last + 1))

    def compare(self, seen: Seen, *, working: bool, worked: bool) -> None:
        """
        What is seen is what must be there; jobs that have run are taken note of.

        Args:
            working: There is a worker now.
            worked: There was one since the last look.
        """
        labels = Counter(map(self.label_of, seen.records))
        assert not labels - Counter(set(labels)), f"there twice: {labels - Counter(set(labels))}"
        records = {self.label_of(record): record for record in seen.records}
        self._new = [entry for entry in self.entries.values() if not entry.has_ended]
        while self._new:
            entry = self._new.pop()
            assert entry.label in records, f"{entry.label} is lost"
            self._learn(entry, records[entry.label], worked=worked)
        assert records.keys() == self.entries.keys(), f"nobody knows of {records.keys() - self.entries.keys()}"
        for entry in self.entries.values():
            self._compare(entry, records[entry.label], working=working)
        self._compare_effects(seen)
        for board in self._events:
            self._compare_events(board, seen.read_before[board], seen.read_after[board])
        assert working or not self._desk.active, "a handler runs without a worker"

    def _learn(self, entry: Entry, record: JobRecord, *, worked: bool) -> None:
        entry.id = entry.id or record.id
        if record.state not in ENDED:
            return
        entry.settled_starts = self._desk.starts(entry.label) if entry.settled_starts is None else entry.settled_starts
        if record.state is JobState.CANCELLED and entry.asked:
            entry.state = JobState.CANCELLED
            return
        assert worked, f"{entry.label} has ended without a worker"
        assert entry.later is not True, f"{entry.label} ran before it was due"
        assert (record.state, record.attempt) == entry.fate, f"{entry.label} has ended as {record.state}"
        entry.state = record.state
        if isinstance(entry.about, Errand):
            self._check_starts(entry.label, record)
        if entry.state is JobState.SUCCEEDED:
            self._follow(entry.about)

    def _check_starts(self, label: str, record: JobRecord) -> None:
        started = self._desk.started[label]
        assert started[-1] == record.attempt
        assert set(started) == set(range(1, record.attempt + 1))
        assert len(started) <= record.claim_no
        assert len(started) == record.attempt or record.claim_no > record.attempt, "tried again with no claim"

    def _follow(self, about: Errand | Post | Turn) -> None:
        """What comes with a success."""
        if isinstance(about, Post):
            self.done(about)
        elif isinstance(about, Errand):
            if about.plan.writes:
                self._effects[about.label] += 1
            for follower in about.followers():
                self.add(follower, follower.label, about.plan.when)
        else:
            self._effects[about.label] += 1
            if about.subscriber == "line":
                self._go_on(about.board)
            else:
                follower = follower_of(about.board, about.version)
                self.add(follower, follower.label)

    def _compare(self, entry: Entry, record: JobRecord, *, working: bool) -> None:
        assert record.id == entry.id
        state = JobState.WAITING if record.state is JobState.RUNNING and working else record.state
        assert state is entry.state, f"{entry.label} is {record.state}, not {entry.state}"
        assert not (entry.asked and record.state is JobState.WAITING), f"{entry.label} waits, but was to be cancelled"
        if entry.state in (JobState.SUCCEEDED, JobState.IGNORED):
            assert record.started_at is not None
            assert record.started_at >= record.due_at, f"{entry.label} was early"
        if entry.state is JobState.DEAD:
            assert record.reason == "error"
            spent = [past["attempt"] for past in record.past_attempts if past["outcome"] != "released"]
            assert spent == list(range(1, record.attempt + 1)), f"{entry.label} died with {record.past_attempts}"
        if not entry.has_ended and entry.later is not None:
            assert (record.due_at - record.created_at > HALF_AN_HOUR) is entry.later, f"{entry.label} is due then?"
        if entry.settled_starts is not None:
            assert self._desk.starts(entry.label) == entry.settled_starts, f"{entry.label} ran all the same"

    def _compare_effects(self, seen: Seen) -> None:
        before, after = Counter(seen.effects_before), Counter(seen.effects_after)
        assert before <= self._effects, f"written too often: {before - self._effects}"
        assert self._effects <= after, f"not written: {self._effects - after}"
        for board in self._in_line:
            in_line = [what for what in seen.effects_after if what.startswith(f"line {board}")]
            assert in_line == [Turn("line", board, n).label for n in range(1, len(in_line) + 1)], "not in order"

    def _compare_events(self, board: str, before: Sequence[StoredEvent], after: Sequence[StoredEvent]) -> None:
        expected = self._events[board]
        assert Counter(event.metadata.source_id for event in before) <= expected
        assert expected <= Counter(event.metadata.source_id for event in after)
        assert [event.stream_version for event in after] == list(range(1, len(after) + 1)), "not dense"

    def total(self) -> int:
        """Of all events."""
        return sum(map(self._posted, self._events))

    def due(self, records: Sequence[JobRecord]) -> list[str]:
        """What a worker has still to run."""
        moved = {self.label_of(record) for record in records if record.due_at - record.created_at > HALF_AN_HOUR}
        return [
            entry.label
            for entry in self.entries.values()
            if not entry.has_ended and not (entry.label in moved if entry.later is None else entry.later)
        ]

    def rest(self, records: Sequence[JobRecord]) -> None:
        """Nobody works at what waits: what a worker was asked for has come about, or will not."""
        moved = {self.label_of(record): record.due_at - record.created_at > HALF_AN_HOUR for record in records}
        for entry in self.entries.values():
            if not entry.has_ended and entry.later is None:
                self.move(entry, later=moved[entry.label])

    def move(self, entry: Entry, *, later: bool) -> None:
        """It is due then."""
        entry.later = later
        entry.settled_starts = self._desk.starts(entry.label) if later else None

    def cancel(self, entry: Entry) -> None:
        """It will not run."""
        entry.state = JobState.CANCELLED
        entry.settled_starts = self._desk.starts(entry.label)


def _fate_of(command: Post) -> tuple[JobState, int]:
    return (JobState.DEAD if command.refused else JobState.SUCCEEDED), 1
