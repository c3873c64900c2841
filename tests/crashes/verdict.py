"""What must be true of every job, wherever a process died."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import asyncpg
import msgspec

from eventflow import JobId, WorkerId
from reliability.rig.transitions import Transition
from tests.crashes.scene import InconclusiveError, Kill, Scene, wait_until
from tests.crashes.states import End

ENDED = {"succeeded", "ignored", "cancelled", "dead"}
LEGAL = {
    (None, "waiting"),
    ("waiting", "running"),
    ("waiting", "waiting"),  # moved in time, put aside
    ("waiting", "cancelled"),
    ("running", "waiting"),
    *(("running", end) for end in ENDED),
}
SUSPECT_CRASHES = 2
PROMISE = timedelta(seconds=2)
"""From a kill until others have what the process held, over direct connections."""
NOISE = timedelta(seconds=1)
"""What is late by less may be the fault of a busy machine: it counts if it happens again and again."""
JOBS = (
    "SELECT id, name, state, attempt, crashes, claim_no, reason, due_at, payload, past_attempts FROM eventflow.any_job"
)
OPEN = "SELECT count(*) FROM eventflow.worker WHERE pid = ANY ($1) AND closed_at IS NULL"


class Start(msgspec.Struct, frozen=True):
    """A handler began."""

    pid: int
    at: datetime


class JobStory(msgspec.Struct, frozen=True):
    """All that is known of one job."""

    id: JobId
    row: asyncpg.Record
    changes: Sequence[Transition]
    starts: Sequence[Start]

    def first(self, after: datetime, suits: Callable[[Transition], bool]) -> datetime | None:
        """When it first changed so, after an instant."""
        return next((change.at for change in self.changes if change.at > after and suits(change)), None)


class Restart(msgspec.Struct, frozen=True):
    """How long it took from a kill until a job was free, and until it was claimed again if it was to be at once."""

    freed: timedelta
    claimed: timedelta | None


async def judge(scene: Scene, end: Callable[[str, int], End], *, given_crashes: int) -> list[Restart]:
    """
    Check all jobs of a scene in which nothing is left to do.

    Args:
        end: How a job of this name ends that so many processes were killed with.
        given_crashes: Of the subjects, before the first kill.
    """
    killed = [kill.pid for kill in scene.kills]

    async def all_closed() -> bool:
        return not await scene.admin.fetchval(OPEN, killed)

    await wait_until(all_closed)
    assert not await scene.admin.fetchval("SELECT count(*) FROM eventflow.signal"), "a request was left behind"
    stories = await _stories(scene)
    holders: dict[WorkerId, int] = {
        WorkerId.of(str(row["id"])): row["pid"]
        for row in await scene.admin.fetch("SELECT id, pid FROM eventflow.worker")
    }
    _check_families([story.row for story in stories])
    if stories and not scene.subjects:
        _check_pick_up(stories)
    for story in stories:
        given = given_crashes if story.id in scene.subjects else 0
        _check_changes(story.changes)
        due_at: datetime = story.row["due_at"]
        _check_starts(story, holders, scene.backing_off_until.get(story.id, due_at))
        _check_end(story, end, scene.kills, given)
    return [
        _restart(story, kill, given_crashes)
        for kill in scene.kills
        for story in stories
        if kill.witnessed and story.id in kill.orphans
    ]


async def _stories(scene: Scene) -> list[JobStory]:
    changes: dict[JobId, list[Transition]] = defaultdict(list)
    for change in await scene.transitions.all():
        changes[change.job_id].append(change)
    starts: dict[JobId, list[Start]] = defaultdict(list)
    for row in await scene.admin.fetch("SELECT job_id, pid, at FROM start ORDER BY at"):
        starts[JobId.of(str(row["job_id"]))].append(Start(row["pid"], row["at"]))
    rows = {JobId.of(str(row["id"])): row for row in await scene.admin.fetch(JOBS)}
    assert rows.keys() == changes.keys(), "jobs were lost"
    return [JobStory(job_id, row, changes[job_id], starts[job_id]) for job_id, row in rows.items()]


def _check_changes(changes: Sequence[Transition]) -> None:
    """Only legal ones, each from where the last one led, and one end."""
    told = [change.change for change in changes]
    assert set(told) <= LEGAL, told
    assert told[0][0] is None, told
    assert all(entered == left for (_, entered), (left, _) in pairwise(told)), told
    assert [entered in ENDED for _, entered in told].index(True) == len(told) - 1, told


def _check_starts(story: JobStory, holders: dict[WorkerId, int], not_before: datetime) -> None:
    """Never early, at most one for each claim, and in the hands of the process that held the job just then."""
    assert len(story.starts) <= story.row["claim_no"], story
    for start in story.starts:
        assert start.at >= not_before, f"{story.row['name']} was early by {not_before - start.at}"
        holding = [
            claim.worker_id
            for claim, release in pairwise(story.changes)
            if claim.entered == "running" and claim.at < start.at < release.at
        ]
        assert [holders[worker_id] for worker_id in holding if worker_id] == [start.pid], (start, story.changes)


def _check_end(story: JobStory, end: Callable[[str, int], End], kills: Sequence[Kill], given_crashes: int) -> None:
    row = story.row
    kills_held = sum(story.id in kill.held for kill in kills)
    expected = end(row["name"], kills_held)
    assert (row["state"], row["reason"]) == (expected.state, expected.reason), row
    assert row["attempt"] == expected.attempt, row
    crashes = given_crashes + (kills_held if expected.counts_crashes else 0)
    assert row["crashes"] == crashes, row
    outcomes = Counter(attempt["outcome"] for attempt in _json(row["past_attempts"]))
    assert outcomes == Counter(expected.outcomes) + Counter({"worker_died": crashes}), row
    assert row["claim_no"] == sum(change.change == ("waiting", "running") for change in story.changes)
    if row["state"] == "succeeded":
        assert story.starts, row


def _check_pick_up(stories: Sequence[JobStory]) -> None:
    """What a dead producer has written was noticed; so many jobs take a while after that."""
    inserted, claimed, *_ = min((story.changes for story in stories), key=lambda changes: changes[1].at)
    _check_promise("a first job", "claimed", claimed.at - inserted.at)


def _check_families(rows: Sequence[asyncpg.Record]) -> None:
    """Who is to have a follow-up job has exactly one, if, and only if, it succeeded."""
    parents = [str(row["id"]) for row in rows if row["name"] == "Parent"]
    children = [_json(row["payload"])["parent"] for row in rows if row["name"] == "Child"]
    assert sorted(children) == sorted(parents)


def _restart(story: JobStory, kill: Kill, given_crashes: int) -> Restart:
    name = story.row["name"]
    freed_at = story.first(kill.at, lambda change: change.left == "running")
    assert freed_at is not None
    _check_promise(name, "rescued", freed_at - kill.at)
    suspect = given_crashes >= SUSPECT_CRASHES or story.row["crashes"] >= SUSPECT_CRASHES
    again_at = story.first(kill.at, lambda change: change.entered == "running")
    if again_at is None or suspect or story.row["due_at"] > freed_at:
        return Restart(freed_at - kill.at, None)
    _check_promise(name, "claimed again", again_at - kill.at)
    return Restart(freed_at - kill.at, again_at - kill.at)


def _check_promise(name: str, what: str, took: timedelta) -> None:
    if took > PROMISE:
        busy = took <= PROMISE + NOISE
        raise (InconclusiveError if busy else AssertionError)(f"{name} was {what} only after {took}")


def _json(text: str | None) -> Any:  # Any: what is stored there
    return msgspec.json.decode(text) if text else []
