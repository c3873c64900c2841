"""
The invariants, judged by what happened.

Their numbers are those of ``docs/reliability.md``.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import msgspec

from eventflow import JobId, WorkerId
from eventflow.jobs.records import DEADLY_CRASHES, SUSPECT_CRASHES
from reliability.faults import HARMLESS, Fault
from reliability.history import PROBE, Asked, Began, Changed, Ended, Evidence, Failed, Joined, Rescued, Saw, Stopped

ENDED = {"succeeded", "ignored", "cancelled", "dead"}
LEGAL = {
    (None, "waiting"),
    ("waiting", "running"),
    ("waiting", "waiting"),
    ("waiting", "cancelled"),
    ("running", "waiting"),
    *(("running", end) for end in ENDED),
}
Change = tuple[str | None, str | None]
COUNTED: dict[Change, tuple[int, ...]] = {("waiting", "running"): (1,), ("running", "waiting"): (0, -1)}
"""How many attempts a change counts."""
STOP_SECONDS = 12.0
"""What a worker takes at most to stop beyond its grace period: for cancelled handlers, the last writes, and closing."""
EXCUSED_SECONDS = 15.0
"""So long after a fault that has passed a worker may be taken for dead by it; one that has died, always."""


class Violation(msgspec.Struct, frozen=True):
    """
    Something that must not happen.

    Attributes:
        invariant: Its number, such as ``I1``.
    """

    invariant: str
    what: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.what}"


class Job(msgspec.Struct):
    """All changes of one job."""

    id: JobId
    name: str
    number: int
    changes: list[Changed]

    @property
    def state(self) -> str | None:
        """The last that it entered."""
        return self.changes[-1].entered

    @property
    def claims(self) -> int:
        """How often it was claimed."""
        return sum(change.entered == "running" for change in self.changes)


def check(evidence: Evidence) -> list[Violation]:
    """Everything that is wrong; empty: nothing is."""
    jobs = _jobs(entry for entry in evidence.entries if isinstance(entry, Changed))
    return [
        *_nothing_lost(evidence, jobs),
        *_nothing_invented(evidence, jobs),
        *_once(evidence, jobs),
        *_children(evidence, jobs),
        *_at_least_once(evidence, jobs),
        *_once_for_each_claim(evidence, jobs),
        *_fenced(jobs),
        *_counted(jobs),
        *_suspects_alone(evidence),
        *_ended_with_reason(evidence, jobs),
        *_living_left_alone(evidence),
        *_woken(evidence),
        *_in_order(evidence),
        *_dense(evidence),
        *_not_early(evidence),
        *(Violation("I11", what) for what in evidence.left_over),
        *_stopped(evidence),
    ]


def _jobs(changes: Iterable[Changed]) -> dict[JobId, Job]:
    jobs: dict[JobId, Job] = {}
    for change in changes:
        jobs.setdefault(change.job_id, Job(change.job_id, change.name, change.number, [])).changes.append(change)
    return jobs


def _nothing_lost(evidence: Evidence, jobs: dict[JobId, Job]) -> Iterator[Violation]:
    """I1: what was acknowledged comes to an end; I10: soon after the last fault."""
    for asked in (entry for entry in evidence.entries if isinstance(entry, Asked)):
        if asked.answer == "done" and asked.job_id is not None and asked.job_id not in jobs:
            yield Violation("I1", f"job {asked.number} was acknowledged and is not there")
    for job in jobs.values():
        if any(change.entered is None for change in job.changes):
            yield Violation("I1", f"{job.name} {job.number} has vanished")
        elif job.state not in ENDED:
            took = evidence.ended_at - evidence.healed_at
            yield Violation("I10", f"{job.name} {job.number} is {job.state} {took:.1f} s after the last fault")


def _nothing_invented(evidence: Evidence, jobs: dict[JobId, Job]) -> Iterator[Violation]:
    """I2: what was refused does not run."""
    written = {job.number for job in jobs.values()}
    written |= {number for deposits in evidence.deposits for number in deposits.numbers}
    for asked in (entry for entry in evidence.entries if isinstance(entry, Asked)):
        if asked.answer == "refused" and asked.number in written:
            yield Violation("I2", f"{asked.number} was refused and has been written")


def _once(evidence: Evidence, jobs: dict[JobId, Job]) -> Iterator[Violation]:
    """I3: what is written with the end of a job is there once if it has succeeded, and not at all otherwise."""
    written = Counter(number for deposits in evidence.deposits for number in deposits.numbers)
    for number, times in written.items():
        if times > 1:
            yield Violation("I3", f"deposit {number} was made {times} times")
    for job in jobs.values():
        if job.name == "Deposit" and (job.state == "succeeded") != (written[job.number] > 0):
            yield Violation("I3", f"deposit {job.number} is {job.state} and was made {written[job.number]} times")
    for asked in (entry for entry in evidence.entries if isinstance(entry, Asked)):
        if asked.answer == "done" and asked.job_id is None and not written[asked.number]:
            yield Violation("I3", f"deposit {asked.number} was acknowledged and is not there")
    for number, times in Counter(job.number for job in jobs.values()).items():
        if times > 1 and number:
            yield Violation("I3", f"job {number} was written {times} times")


def _children(evidence: Evidence, jobs: dict[JobId, Job]) -> Iterator[Violation]:
    """I3: what a job leads to is there once if it has succeeded, and not at all otherwise."""
    written = Counter(job.number for job in jobs.values())
    for job in jobs.values():
        for child in evidence.children.get(job.number, ()) if job.name == "Work" else ():
            if written[child] != (job.state == "succeeded"):
                yield Violation("I3", f"job {job.number} is {job.state} and has led {written[child]} times to {child}")


def _at_least_once(evidence: Evidence, jobs: dict[JobId, Job]) -> Iterator[Violation]:
    """I4: what has succeeded has run to its end, and no more often than it was claimed."""
    began = Counter(entry.number for entry in evidence.entries if isinstance(entry, Began))
    ended = Counter(entry.number for entry in evidence.entries if isinstance(entry, Ended))
    for job in jobs.values():
        if job.name not in ("Work", "News"):
            continue
        if job.state == "succeeded" and not ended[job.number]:
            yield Violation("I4", f"job {job.number} has succeeded and never came to its end")
        if began[job.number] > job.claims:
            yield Violation("I4", f"job {job.number} began {began[job.number]} times in {job.claims} claims")
        if evidence.ledger is not None and not ended[job.number] <= evidence.ledger.get(job.number, 0) <= job.claims:
            booked = evidence.ledger.get(job.number, 0)
            yield Violation("I4", f"job {job.number} ended {ended[job.number]} times and was booked {booked} times")


def _once_for_each_claim(evidence: Evidence, jobs: dict[JobId, Job]) -> Iterator[Violation]:
    """I4: a process starts a job no more often than it has claimed it."""
    joined = {entry.worker_id: entry.process for entry in evidence.entries if isinstance(entry, Joined)}
    began = Counter((entry.process, entry.number) for entry in evidence.entries if isinstance(entry, Began))
    for job in (job for job in jobs.values() if job.name in ("Work", "News")):
        claims = [change.worker_id for change in job.changes if change.entered == "running" and change.worker_id]
        claimed = Counter(joined[worker_id] for worker_id in claims if worker_id in joined)
        for process, times in claimed.items():
            if began[process, job.number] > times:
                yield Violation("I4", f"job {job.number} began again in {process}, which claimed it {times} times")


def _fenced(jobs: dict[JobId, Job]) -> Iterator[Violation]:
    """I5: changes are legal, each from where the last one led; claims grow; an end stays."""
    for job in jobs.values():
        told = [(change.left, change.entered) for change in job.changes]
        if any(change not in LEGAL for change in told if change[1] is not None):
            yield Violation("I5", f"{job.name} {job.number}: {told}")
        if any(entered != left for (_, entered), (left, _) in pairwise(told)):
            yield Violation("I5", f"{job.name} {job.number} changed from where it was not: {told}")
        for change in job.changes:
            if change.left == "running" and change.writer not in (None, (change.worker_id, change.claim_no)):
                yield Violation("I5", f"{job.name} {job.number}: {change.writer} ended a claim of {change.worker_id}")
        numbers = [change.claim_no for change in job.changes if change.entered == "running"]
        if numbers != sorted(set(numbers)):
            yield Violation("I5", f"{job.name} {job.number}: claims {numbers}")


def _counted(jobs: dict[JobId, Job]) -> Iterator[Violation]:
    """I5: a claim counts one attempt, and giving it back takes no more than this one away."""
    for job in jobs.values():
        for before, after in pairwise(job.changes):
            change, gained = (after.left, after.entered), after.attempt - before.attempt
            if gained not in COUNTED.get(change, (0,)):
                yield Violation("I5", f"{job.name} {job.number}: {change} counts {gained} attempts")


def _suspects_alone(evidence: Evidence) -> Iterator[Violation]:
    """I14: a job that was held by workers when they died runs with no other."""
    held: dict[WorkerId, dict[JobId, Changed]] = defaultdict(dict)
    for change in (entry for entry in evidence.entries if isinstance(entry, Changed)):
        for jobs in held.values():
            jobs.pop(change.job_id, None)
        if change.entered == "running" and change.worker_id is not None:
            jobs = held[change.worker_id]
            jobs[change.job_id] = change
            suspects = [other.number for other in jobs.values() if other.crashes >= SUSPECT_CRASHES]
            if suspects and len(jobs) > 1:
                yield Violation("I14", f"suspect {suspects[0]} was claimed beside others")


def _ended_with_reason(evidence: Evidence, jobs: dict[JobId, Job]) -> Iterator[Violation]:
    """I14: no job pays for another: only what fails too often is given up, only what is cancelled does not run."""
    for job in jobs.values():
        last = job.changes[-1]
        if job.state == "dead" and job.number not in evidence.doomed and last.crashes < DEADLY_CRASHES:
            yield Violation("I14", f"{job.name} {job.number} was given up after {last.attempt} attempts")
        if job.state == "cancelled" and job.number not in evidence.cancelled:
            yield Violation("I14", f"{job.name} {job.number} was cancelled, and nobody asked for it")


def _living_left_alone(evidence: Evidence) -> Iterator[Violation]:
    """I16: nobody is taken for dead without a reason."""
    joined = {entry.worker_id: entry for entry in evidence.entries if isinstance(entry, Joined)}
    harmless = {fault.value for fault in HARMLESS}
    failed = [entry for entry in evidence.entries if isinstance(entry, Failed) and entry.fault not in harmless]
    for rescued in (entry for entry in evidence.entries if isinstance(entry, Rescued)):
        process = joined[rescued.worker_id].process
        if not any(fault.target in (process, "server") and _explains(fault, rescued) for fault in failed):
            yield Violation("I16", f"{process} was taken for dead")


def _explains(fault: Failed, rescued: Rescued) -> bool:
    is_death = fault.fault in (Fault.KILL.value, Fault.CRASH.value)
    return fault.at < rescued.at and (is_death or rescued.at < fault.at + fault.seconds + EXCUSED_SECONDS)


def _woken(evidence: Evidence) -> Iterator[Violation]:
    """I17: once all is well again, a notification starts a job at once."""
    probes = [entry for entry in evidence.entries if isinstance(entry, Asked) and entry.number == PROBE]
    if [entry.answer for entry in probes] != ["done"] * evidence.is_probed:
        yield Violation("I17", f"a call was answered by {[entry.answer for entry in probes]}")
    for asked in probes:
        began = [entry.at for entry in evidence.entries if isinstance(entry, Began) and entry.number == PROBE]
        if not began or began[0] > asked.at + evidence.wake_seconds:
            took = began[0] - asked.at if began else float("inf")
            yield Violation("I17", f"a job began {took:.3f} s after its call, though nothing failed any more")


def _in_order(evidence: Evidence) -> Iterator[Violation]:
    """I6: a subscriber that takes events in order sees each, and none before the one in front of it."""
    seen: dict[str, int] = defaultdict(int)
    for saw in (entry for entry in evidence.entries if isinstance(entry, Saw)):
        if saw.stream_version > seen[saw.account_id] + 1:
            last = seen[saw.account_id]
            yield Violation("I6", f"{saw.account_id}: event {saw.stream_version} was seen after event {last}")
        seen[saw.account_id] = max(seen[saw.account_id], saw.stream_version)
    for deposits in evidence.deposits:
        if seen[deposits.account_id] != len(deposits.versions):
            last = seen[deposits.account_id]
            yield Violation("I6", f"{deposits.account_id}: {last} of {len(deposits.versions)} events were seen")


def _dense(evidence: Evidence) -> Iterator[Violation]:
    """I9: the events of a stream are numbered without a gap."""
    for deposits in evidence.deposits:
        if list(deposits.versions) != list(range(1, len(deposits.versions) + 1)):
            yield Violation("I9", f"{deposits.account_id}: versions {deposits.versions}")


def _not_early(evidence: Evidence) -> Iterator[Violation]:
    """I15: no job starts before its time, by the store's clock."""
    if evidence.clock_was_set:
        return
    for began in (entry for entry in evidence.entries if isinstance(entry, Began)):
        if began.store_us < began.due_us:
            yield Violation("I15", f"job {began.number} began {began.due_us - began.store_us} us early")


def _stopped(evidence: Evidence) -> Iterator[Violation]:
    """I12: a stop takes no longer than it may."""
    for stopped in (entry for entry in evidence.entries if isinstance(entry, Stopped)):
        if stopped.took > stopped.allowed + STOP_SECONDS:
            yield Violation("I12", f"{stopped.process} took {stopped.took:.1f} s to stop")


def numbers_of(violations: Sequence[Violation]) -> list[str]:
    """The invariants that are broken, each once."""
    return sorted({violation.invariant for violation in violations})
