"""The checker notices what must not happen: each invariant by a history that breaks it, and by that one alone."""

from collections.abc import Sequence
from typing import Any

import pytest

from eventflow import JobId, WorkerId
from reliability.checker import check, numbers_of
from reliability.history import (
    PROBE,
    AnyEntry,
    Asked,
    Began,
    Changed,
    Deposits,
    Ended,
    Evidence,
    Failed,
    Joined,
    Rescued,
    Saw,
    Stopped,
)

JOB, OTHER = JobId.new(), JobId.new()
ANN, BOB = WorkerId.new(), WorkerId.new()


def changed(
    left: str | None,
    entered: str | None,
    *,
    job: JobId = JOB,
    name: str = "Work",
    number: int = 1,
    attempt: int = 0,
    claim: int = 0,
    crashes: int = 0,
    worker: WorkerId | None = None,
    writer: tuple[WorkerId, int] | None = None,
) -> Changed:
    """A change of a job's state."""
    return Changed(0.0, job, name, number, left, entered, attempt, claim, crashes, worker, "settle", writer)


def ran(
    *, job: JobId = JOB, name: str = "Work", number: int = 1, worker: WorkerId = ANN, end: str | None = "succeeded"
) -> list[AnyEntry]:
    """A job that is claimed, runs and ends."""
    of: dict[str, Any] = {"job": job, "name": name, "number": number}
    return [
        changed(None, "waiting", **of),
        changed("waiting", "running", **of, attempt=1, claim=1, worker=worker),
        Began(0.0, "worker-0", number, 1, 5, 5),
        Ended(0.0, "worker-0", number),
        changed("running", end, **of, attempt=1, claim=1, worker=worker, writer=(worker, 1)),
    ]


def broken(entries: Sequence[AnyEntry], **given: Any) -> list[str]:
    """The invariants that a history breaks."""
    fields: dict[str, Any] = {"deposits": [], "clock_was_set": False, "doomed": set(), "cancelled": set()}
    evidence = Evidence(list(entries), healed_at=10.0, ended_at=70.0, **(fields | given))
    return numbers_of(check(evidence))


def test_nothing_is_wrong_with_a_job_that_ran() -> None:
    """Nor with one that is claimed again by another after its worker died."""
    again = ran()
    again[2:2] = [
        Joined(0.0, "worker-1", BOB),
        Failed(1.0, "kill", "worker-1"),
        Rescued(2.0, BOB),
    ]

    assert broken([Asked(0.0, "producer-0", 1, "done", JOB), *again]) == []


def test_job_that_is_not_there() -> None:
    """Though its caller was told that it is."""
    assert broken([Asked(0.0, "producer-0", 1, "done", JOB)]) == ["I1"]


def test_job_that_vanishes() -> None:
    """It was there, and nothing tells of its end."""
    gone = [changed(None, "waiting"), changed("waiting", None)]

    assert broken(gone) == ["I1"]
    assert broken([*gone, *ran()]) == ["I1"]


def test_job_that_was_refused_and_is_there() -> None:
    """Its caller may have scheduled it once more."""
    assert broken([Asked(0.0, "producer-0", 1, "refused"), *ran()]) == ["I2"]


@pytest.mark.parametrize("numbers", [[1, 1], []])
def test_deposit_that_is_not_made_once(numbers: list[int]) -> None:
    """Its job has succeeded."""
    deposits = [Deposits("account-1", list(range(1, len(numbers) + 1)), numbers)]
    seen = [Saw(0.0, "worker-0", "account-1", version + 1) for version in range(len(numbers))]

    assert broken([*ran(name="Deposit"), *seen], deposits=deposits) == ["I3"]


def test_deposit_of_a_job_that_has_not_succeeded() -> None:
    """It is there all the same."""
    deposits = [Deposits("account-1", [1], [1])]

    assert broken(
        [*ran(name="Deposit", end="cancelled"), Saw(0.0, "w", "account-1", 1)], deposits=deposits, cancelled={1}
    ) == ["I3"]


def test_job_written_twice() -> None:
    """One call, two jobs; or one parent, whose child came twice."""
    entries = [*ran(), *ran(job=OTHER)]

    assert broken(entries) == ["I3", "I4"]


def test_job_that_never_ran_to_its_end() -> None:
    """And has succeeded."""
    assert broken([entry for entry in ran() if not isinstance(entry, Ended)]) == ["I4"]


@pytest.mark.parametrize("booked", [0, 2])
def test_end_that_was_booked_otherwise(booked: int) -> None:
    """In the other database, where each claim that comes to its end leaves one row."""
    assert broken(ran(), ledger={1: booked}) == ["I4"]


@pytest.mark.parametrize(("end", "children"), [("succeeded", 0), ("dead", 1), ("succeeded", 2)])
def test_child_that_does_not_follow_from_its_parent(end: str, children: int) -> None:
    """It is there once if that has succeeded, and not at all otherwise."""
    follow = [entry for _ in range(children) for entry in ran(job=JobId.new(), number=7)]

    found = broken([*ran(end=end), *follow], children={1: (7,)}, doomed={1})

    assert "I3" in found


def test_job_that_begins_again_in_a_process_that_has_claimed_it_once() -> None:
    """Though others have claimed it as well."""
    entries = [Joined(0.0, "worker-0", ANN), Joined(0.0, "worker-1", BOB), *ran()]
    entries[3:3] = [
        changed("waiting", "running", attempt=1, claim=1, worker=BOB),
        changed("running", "waiting", worker=BOB, claim=1),
    ]
    again = Began(0.0, "worker-0", 1, 1, 5, 5)

    assert "I4" not in broken(entries)
    assert "I4" in broken([*entries, again])


def test_job_that_ran_without_a_claim() -> None:
    """Twice, in one claim."""
    assert broken([*ran(), Began(0.0, "worker-1", 1, 1, 5, 5)]) == ["I4"]


@pytest.mark.parametrize(
    "change",
    [
        changed("succeeded", "waiting", attempt=1, claim=1),
        changed("running", "dead", attempt=1, claim=1),
        changed("succeeded", "running", attempt=2, claim=1, worker=BOB),
    ],
)
def test_change_that_must_not_be(change: Changed) -> None:
    """From an end, and from where the job was not."""
    assert "I5" in broken([*ran(), change], doomed={1})


@pytest.mark.parametrize("writer", [(BOB, 1), (ANN, 2)])
def test_claim_that_was_ended_by_another(writer: tuple[WorkerId, int]) -> None:
    """By another worker, or by its own for another claim."""
    entries = ran()
    entries[-1] = changed("running", "succeeded", attempt=1, claim=1, worker=ANN, writer=writer)

    assert broken(entries) == ["I5"]


def test_attempt_counted_twice() -> None:
    """Or given back twice."""
    entries = ran()
    entries[1] = changed("waiting", "running", attempt=2, claim=1, worker=ANN)

    assert broken(entries) == ["I5"]


@pytest.mark.parametrize("versions", [[2, 1], [1]])
def test_events_out_of_order(versions: list[int]) -> None:
    """Or not all of them."""
    deposits = [Deposits("account-1", [1, 2], [1, 2])]
    seen = [Saw(0.0, "worker-0", "account-1", version) for version in versions]
    jobs = [*ran(name="Deposit"), *ran(job=OTHER, name="Deposit", number=2)]

    assert broken([*jobs, *seen], deposits=deposits) == ["I6"]


def test_event_seen_again_before_the_next() -> None:
    """That is allowed: its job may run again."""
    deposits = [Deposits("account-1", [1, 2], [1, 2])]
    seen = [Saw(0.0, "worker-0", "account-1", version) for version in (1, 1, 2)]
    jobs = [*ran(name="Deposit"), *ran(job=OTHER, name="Deposit", number=2)]

    assert broken([*jobs, *seen], deposits=deposits) == []


def test_stream_with_a_gap() -> None:
    """Its numbers are not 1, 2, 3."""
    deposits = [Deposits("account-1", [1, 3], [1, 2])]
    seen = [Saw(0.0, "worker-0", "account-1", version) for version in (1, 2)]
    jobs = [*ran(name="Deposit"), *ran(job=OTHER, name="Deposit", number=2)]

    assert broken([*jobs, *seen], deposits=deposits) == ["I9"]


def test_job_that_stays() -> None:
    """A minute after the last fault."""
    assert broken([changed(None, "waiting")]) == ["I10"]


def test_what_is_left_over() -> None:
    """Tasks, deaf workers, lost slots: whatever was found."""
    assert broken([], left_over=["worker-0 still runs a task"]) == ["I11"]


def test_stop_that_takes_too_long() -> None:
    """More than the grace period and what cleaning up may take."""
    assert broken([Stopped(0.0, "worker-0", took=13.0, allowed=2.0)]) == []
    assert broken([Stopped(0.0, "worker-0", took=15.0, allowed=2.0)]) == ["I12"]


@pytest.mark.parametrize("end", ["dead", "cancelled"])
def test_end_without_a_reason(end: str) -> None:
    """Nobody has cancelled it, and it does not fail."""
    assert broken(ran(end=end)) == ["I14"]
    assert broken(ran(end=end), doomed={1}, cancelled={1}) == []


def test_suspect_beside_others() -> None:
    """Two jobs in one worker's hands, one of which was held by two that died."""
    first = [changed(None, "waiting"), changed("waiting", "running", attempt=1, claim=1, worker=ANN)]
    suspect: dict[str, Any] = {"job": OTHER, "number": 2, "crashes": 2}
    second = [
        changed(None, "waiting", **suspect),
        changed("waiting", "running", **suspect, attempt=1, claim=1, worker=ANN),
    ]

    assert "I14" in broken([*first, *second])


def test_job_that_starts_early() -> None:
    """By the store's clock; unless that was set."""
    entries = [Began(0.0, "w", 1, 1, 4, 5) if isinstance(entry, Began) else entry for entry in ran()]

    assert broken(entries) == ["I15"]
    assert broken(entries, clock_was_set=True) == []


def test_worker_that_lives_and_is_taken_for_dead() -> None:
    """Nothing had failed, or only what does no harm."""
    entries = [Joined(0.0, "worker-1", BOB), Rescued(2.0, BOB)]

    assert broken(entries) == ["I16"]
    assert broken([Failed(1.0, "reset", "worker-1"), *entries]) == ["I16"]
    assert broken([Failed(1.0, "kill", "worker-2"), *entries]) == ["I16"]
    assert broken([Failed(1.0, "freeze", "worker-1"), *entries]) == []
    assert broken([Failed(1.0, "restart", "server"), *entries]) == []


def test_worker_that_is_taken_for_dead_long_after_a_fault() -> None:
    """Only one that has died may be, as there may have been nobody to notice."""
    entries = [Joined(0.0, "worker-1", BOB), Rescued(30.0, BOB)]

    assert broken([Failed(1.0, "freeze", "worker-1", 2.5), *entries]) == ["I16"]
    assert broken([Failed(1.0, "kill", "worker-1", 2.5), *entries]) == []


def test_job_that_nobody_was_told_of() -> None:
    """It waited for somebody to look."""

    def began_at(at: float) -> list[AnyEntry]:
        entries = [Began(at, "w", PROBE, 1, 5, 5) if isinstance(e, Began) else e for e in ran(number=PROBE)]
        return [Asked(20.0, "producer-0", PROBE, "done", JOB), *entries]

    assert broken(began_at(20.05), is_probed=True) == []
    assert broken(began_at(20.5), is_probed=True) == ["I17"]
    assert broken([], is_probed=True) == ["I17"]
