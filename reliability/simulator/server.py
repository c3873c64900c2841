"""The database as the simulator has it: one machine, whose calls each happen at one instant."""

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextvars import Context
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import msgspec

from eventflow import JobId, JobRecord, WorkerId
from eventflow.eventstore import InMemoryEventStore, StreamId
from eventflow.jobs import Ending, InMemoryCommits, InMemoryJobStore, Interest, Peer, Tick
from eventflow.jobs.publish_command import NAME_PREFIX
from reliability.history import AnyEntry, Changed, Deposits, Rescued
from reliability.simulator.clocks import SimulatedClock
from reliability.simulator.loop import Process, SimulatedLoop
from reliability.simulator.sessions import Session

T = TypeVar("T")
P = ParamSpec("P")

READS = frozenset(("tick", "now_us", "beat", "claims", "get", "find", "look", "load", "answer", "listen", "accept"))
"""Calls that change no job: nothing is looked for after them."""
Row = tuple[str, int, int, int, WorkerId | None]
"""State, attempt, claim number, crashes and holder of a job."""


class Call(NamedTuple):
    """
    A call as the server saw it.

    Attributes:
        at: Seconds since the beginning.
        outcome: Its result, or what it raised.
    """

    at: float
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outcome: object


def at_once(call: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        call.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("a store in memory has waited for something")


class Server:
    """
    The stores in memory behind one address, and the sessions that are open there.

    Args:
        loop: Where it runs.

    Attributes:
        note: Takes what changes.
        is_up: It takes calls.
        context: For what happens here.
        calls: All that were made, if somebody wants to know.
    """

    def __init__(self, loop: SimulatedLoop) -> None:
        self.clock = SimulatedClock(loop)
        self.jobs = _SeenJobStore(self)
        self.events = InMemoryEventStore(self.clock)
        self.commits = InMemoryCommits(self.jobs, self.events)
        self.context: Context = Process(loop, "server").thread().context()
        self.note: Callable[[AnyEntry], None] = lambda _: None
        self.is_up = True
        self.calls: list[Call] | None = None
        self.sessions: dict[Session, None] = {}  # a set would have another order each time
        self._loop = loop
        self._starts = 1
        self._rows: dict[JobId, Row] = {}
        self._shown: dict[WorkerId, tuple[int, str] | None] = {}

    @property
    def identity(self) -> str:
        """Of the running server."""
        return f"server-{self._starts}"

    def run(self, call: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """One call, in a transaction of its own; what it changes is told."""
        try:
            result = at_once(call(*args, **kwargs))
        except Exception as exc:
            self._record(call.__name__, args, kwargs, exc)
            raise
        else:
            self._record(call.__name__, args, kwargs, result)
            if call.__name__ == "rescue" and result is not None:
                self.note(Rescued(self._loop.time(), cast("Peer", args[0]).worker_id))
            return result
        finally:
            if call.__name__ not in READS:
                self._tell(call.__name__, args, kwargs)

    def restart(self) -> None:
        """End all sessions."""
        self._starts += 1
        for session in list(self.sessions):
            session.end()

    def notify(self, channel: str, payload: str) -> None:
        """Tell all who listen."""
        for session in list(self.sessions):
            session.hear(channel, payload)

    async def beat(self, worker_id: WorkerId, session: tuple[int, str] | None) -> bool:
        """A worker's beat, which names the session that it holds."""
        self._shown[worker_id] = session
        return await self.jobs.beat(worker_id)

    def is_gone(self, worker_id: WorkerId) -> bool:
        """Whether the session that a worker holds on this very server is not there."""
        shown = self._shown.get(worker_id)
        if shown is None or shown[1] != self.identity:
            return False
        return all(session.lock != shown[0] for session in self.sessions)

    def deposits(self, streams: Iterable[StreamId]) -> list[Deposits]:
        """The events of accounts."""
        return [self._deposits(stream) for stream in streams]

    def records(self) -> Sequence[JobRecord]:
        """All jobs."""
        return at_once(self.jobs.find(limit=len(self._rows)))

    def states(self) -> dict[JobId, str]:
        """Where all jobs are."""
        return {job_id: row[0] for job_id, row in self._rows.items()}

    def _deposits(self, stream: StreamId) -> Deposits:
        events = at_once(self.events.load(stream))
        numbers = [msgspec.json.decode(event.data)["number"] for event in events]
        return Deposits(stream.aggregate_id, [event.stream_version for event in events], numbers)

    def _record(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], outcome: object) -> None:
        if self.calls is not None:
            self.calls.append(Call(self._loop.time(), name, args, kwargs, outcome))

    def _tell(self, by: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        seen, now = self.jobs.rows(), self._loop.time()
        writers = _writers(by, args, kwargs)
        for job_id, row in seen.items():
            before = self._rows.get(job_id)
            if before == row:
                continue
            left = None if before is None else before[0]
            holder = row[4] if row[4] is not None or before is None else before[4]
            name, number = self.jobs.what(job_id)
            self.note(
                Changed(
                    now, job_id, name, number, left, row[0], row[1], row[2], row[3], holder, by, writers.get(job_id)
                )
            )
        self._rows = seen


def _writers(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[JobId, tuple[WorkerId, int]]:
    """By job the claim that a call ends."""
    if name == "settle":
        return {settlement.claim.id: (args[0], settlement.claim.claim_no) for settlement in args[1]}
    ends: Ending | None = kwargs.get("ends") if name == "commit" else None
    return {} if ends is None else {ends.settlement.claim.id: (ends.worker_id, ends.settlement.claim.claim_no)}


class _SeenJobStore(InMemoryJobStore):
    """The job store in memory, whose rows can be seen, and which knows whose session is gone."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.clock)
        self._server = server

    def rows(self) -> dict[JobId, Row]:
        return {
            job_id: (row.state.value, row.attempt, row.claim_no, row.crashes, row.worker_id)
            for job_id, row in self._rows.items()
        }

    def what(self, job_id: JobId) -> tuple[str, int]:
        """The message's name, and its number if it has one."""
        job = self._rows[job_id].job
        return job.name.removeprefix(NAME_PREFIX), msgspec.json.decode(job.payload).get("number", 0)

    async def tick(self, worker_id: WorkerId, interest: Interest) -> Tick:
        tick = await super().tick(worker_id, interest)
        peers = [
            msgspec.structs.replace(peer, session_gone=self._server.is_gone(peer.worker_id)) for peer in tick.peers
        ]
        return msgspec.structs.replace(tick, server=self._server.identity, peers=peers)
