"""What must come of errands and boards, by what was answered to calls, and by what has run since."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import msgspec

from eventflow import JobId, JobRecord, JobState, StoredEvent
from tests.support.errands import BoardId, Desk, Errand, Post, When, follower_of, subscriber_attempts
from tests.support.journal import ENDED

HALF_AN_HOUR = timedelta(minutes=30)


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
