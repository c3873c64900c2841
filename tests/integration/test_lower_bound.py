"""Claims begin at a lower bound; whatever turns up below it is found all the same."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from eventflow import App, JobId, SystemClock, WorkerId
from eventflow.clock import to_microseconds
from eventflow.ids import new_uuid
from eventflow.jobs import ClaimedJob, NewJob, Outcome, Peer, Settlement, WorkerRecord
from eventflow.postgres import Connection, PostgresJobStore, bounds, connector
from eventflow.scheduling import Due
from tests.support.job_stores import interest, new_job
from tests.support.journal import Journal, Note, ended, flow_of, query
from tests.support.postgres import Database
from tests.support.waiting import eventually

WITHIN_A_SWEEP = 2.5
"""Seconds: one look, the sweep after it, and a claim, on a busy machine."""
LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)
INSERT = """
    INSERT INTO eventflow.job (id, queue_id, due_at, ready_at, name, version, payload)
    VALUES ($1, eventflow.ensure_queue($2), $3, $3, $4, 1, '{}')
"""


# Each makes one job that is ready, in its own way, and returns its id.


async def schedule_in_the_past(app: App, dsn: str) -> JobId:
    return await app.jobs.schedule(Note(), at=LONG_AGO)


async def reschedule_into_the_past(app: App, dsn: str) -> JobId:
    job_id = await app.jobs.schedule(Note(), delay=timedelta(hours=1))
    await app.jobs.reschedule(job_id, at=LONG_AGO)
    return job_id


async def insert_by_hand(app: App, dsn: str) -> JobId:
    job_id = JobId.new()
    await query(dsn, INSERT, job_id.uuid, "default", LONG_AGO, "Note")
    return job_id


async def rescue(app: App, dsn: str) -> JobId:
    """Claimed by a worker that died a long time ago."""
    store = PostgresJobStore(connector(dsn, name="dead"), "eventflow")
    try:
        job_id, worker_id = await _claim_elsewhere(store, dsn)
        assert await store.rescue(Peer(worker_id, 0, session_gone=True)) == 1
    finally:
        await store.close()
    return job_id


async def release(app: App, dsn: str) -> JobId:
    """Claimed, and given back, by another worker."""
    store = PostgresJobStore(connector(dsn, name="other"), "eventflow")
    try:
        job_id, worker_id = await _claim_elsewhere(store, dsn)
        assert await store.close_worker(worker_id) == 1
    finally:
        await store.close()
    return job_id


async def _claim_elsewhere(store: PostgresJobStore, dsn: str) -> tuple[JobId, WorkerId]:
    job_id, worker_id = JobId.new(), WorkerId.new()
    await store.open_worker(WorkerRecord(worker_id, "host", 1, "1.0", None, 1))
    await query(
        dsn,
        "INSERT INTO eventflow.running (id, worker_id, claimed_at, queue_id, lane, priority, due_at, ready_at,"
        " created_at, name, version, payload, attempt, crashes, claim_no)"
        " VALUES ($1, $2, $3, 1, 0, 1, $3, $3, $3, 'Note', 1, '{}', 1, 0, 1)",
        job_id.uuid,
        worker_id.uuid,
        LONG_AGO,
    )
    return job_id, worker_id


async def commit_late(app: App, dsn: str, seconds: float = 0.5) -> JobId:
    """In a transaction that goes on for a while."""
    connection: Connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            job_id = await app.jobs.schedule(Note(), connection=connection)
            await keep_busy(app, seconds)
    finally:
        await connection.close()
    return job_id


async def commit_very_late(app: App, dsn: str) -> JobId:
    """It is open for longer than anybody waits for."""
    return await commit_late(app, dsn, bounds.PATIENCE_US / 1_000_000 + 1)


async def keep_busy(app: App, seconds: float) -> None:
    """Let the worker claim on, so that its bound moves."""
    clock = SystemClock()
    until = clock.monotonic() + seconds
    while clock.monotonic() < until:
        await ended(app, await app.jobs.schedule(Note()))


WAYS = [
    schedule_in_the_past,
    reschedule_into_the_past,
    insert_by_hand,
    rescue,
    release,
    commit_late,
    commit_very_late,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_job_that_turns_up_behind_the_bound_is_claimed(
    dsn: str, journal: Journal, way: Callable[[App, str], Awaitable[JobId]]
) -> None:
    """Within a look and a sweep, although claims have moved on."""
    async with flow_of(journal).open(dsn) as app, app.worker():
        await keep_busy(app, 0.5)
        job_id = await way(app, dsn)

        async def started() -> bool:
            return job_id in journal.ids()

        await eventually(started, within=WITHIN_A_SWEEP)


@pytest.mark.parametrize("way", [insert_by_hand, commit_very_late], ids=lambda way: way.__name__)
async def test_only_the_sweep_finds_what_breaks_the_rule(
    dsn: str, journal: Journal, monkeypatch: pytest.MonkeyPatch, way: Callable[[App, str], Awaitable[JobId]]
) -> None:
    """Which shows that the bound had moved on in the test above, and that claims begin there."""

    async def no_sweep(store: PostgresJobStore) -> int:
        return 0

    monkeypatch.setattr(PostgresJobStore, "sweep", no_sweep)
    async with flow_of(journal).open(dsn) as app, app.worker():
        await keep_busy(app, 0.5)
        job_id = await way(app, dsn)
        await keep_busy(app, WITHIN_A_SWEEP)

        assert job_id not in journal.ids()


CALLS = (
    *("insert", "insert", "insert_later", "begin", "commit", "commit", "claim", "claim", "claim", "tick", "tick"),
    *("succeed", "release", "retry", "rescue", "reschedule"),
)


class Step(msgspec.Struct, frozen=True):
    """One call, by one of the two workers; *which* picks what it is about."""

    call: str
    who: int
    which: int


def steps(*calls: str) -> st.SearchStrategy[list[Step]]:
    """Interleavings of these calls."""
    step = st.builds(Step, call=st.sampled_from(calls), who=st.integers(0, 1), which=st.integers(0, 100))
    return st.lists(step, min_size=30, max_size=80)


OUTCOMES = {"succeed": Outcome.SUCCEEDED, "release": Outcome.RELEASED, "retry": Outcome.RETRY}


class Histories:
    """Two workers, each with its own store and so with its own bounds, and transactions that stay open."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.queue = new_uuid()
        self.wants = interest((self.queue,))
        self.stores = [PostgresJobStore(connector(dsn, name="history"), "eventflow") for _ in range(2)]
        self.workers: list[WorkerId] = []
        self.held: list[tuple[int, ClaimedJob]] = []
        self.open: list[Connection] = []
        self.idle: list[Connection] = []
        self.unfinished: set[JobId] = set()

    async def begin(self) -> None:
        """Register the workers."""
        for number in range(len(self.stores)):
            self.workers.append(WorkerId.new())
            await self._register(number)

    async def _register(self, who: int) -> None:
        await self.stores[who].open_worker(WorkerRecord(self.workers[who], "host", 1, "1.0", (self.queue,), 1))

    async def take(self, step: Step) -> None:
        """Make one call."""
        await getattr(self, f"_{step.call}", self._end)(step)

    async def _insert(self, step: Step) -> None:
        await self.stores[step.who].insert([self._job()])

    async def _insert_later(self, step: Step) -> None:
        await self.stores[step.who].insert([self._job(due=Due(delay_us=step.which * 100))])

    async def _insert_by_hand(self, step: Step) -> None:
        job, connection = self._job(), await self._connection()
        await connection.execute(INSERT, job.id.uuid, self.queue, LONG_AGO + timedelta(days=step.which), job.name)
        self.idle.append(connection)

    async def _begin(self, step: Step) -> None:
        connection = await self._connection()
        await connection.execute("BEGIN")
        await self.stores[step.who].insert_in(connection, [self._job()])
        self.open.append(connection)

    async def _commit(self, step: Step) -> None:
        if self.open:
            connection = self.open.pop(step.which % len(self.open))
            await connection.execute("COMMIT")
            self.idle.append(connection)

    async def _claim(self, step: Step, ready: int | None = None) -> None:
        batch = await self.stores[step.who].claim(
            self.workers[step.who],
            self.wants,
            ready=ready or 1 + step.which % 3,
            ahead=ready or 0,
            horizon_us=1_000_000,
        )
        self.held += [(step.who, claim) for claim in batch.jobs]

    async def _tick(self, step: Step) -> None:
        await self.stores[step.who].tick(self.workers[step.who], self.wants)

    async def _sweep(self, step: Step) -> None:
        await self.stores[step.who].sweep()

    async def _end(self, step: Step) -> None:
        if self.held:
            who, claim = self.held.pop(step.which % len(self.held))
            settlement = Settlement(claim=claim, outcome=OUTCOMES[step.call])
            assert await self.stores[who].settle(self.workers[who], [settlement]) == {claim.id}
            if step.call == "succeed":
                self.unfinished.remove(claim.id)

    async def _rescue(self, step: Step) -> None:
        held = [claim for who, claim in self.held if who == step.who]
        if all(claim.crashes == 0 for claim in held):  # suspects have their own tests
            rescued = await self.stores[1 - step.who].rescue(Peer(self.workers[step.who], 0, session_gone=False))
            assert rescued == len(held)
            self.held = [(who, claim) for who, claim in self.held if who != step.who]
            self.workers[step.who] = WorkerId.new()
            await self._register(step.who)

    async def _reschedule(self, step: Step) -> None:
        if self.unfinished:
            job_id = sorted(self.unfinished)[step.which % len(self.unfinished)]
            await self.stores[step.who].reschedule(job_id, Due(at_us=to_microseconds(LONG_AGO)))

    async def drain(self, *, sweep: bool) -> None:
        """Commit what is open; one worker must find every job then, after one look, and one sweep if that is meant."""
        while self.open:
            await self._commit(Step("commit", 0, 0))
        for claimed in (claim.id for _, claim in self.held):
            self.unfinished.remove(claimed)
        self.held.clear()
        await self._tick(Step("tick", 0, 0))
        if sweep:
            await self._sweep(Step("sweep", 0, 0))
        await self._claim(Step("claim", 0, 0), ready=1_000)
        assert {claim.id for _, claim in self.held} == self.unfinished

    async def close(self) -> None:
        """Give everything back."""
        for connection in (*self.open, *self.idle):
            await connection.close()
        for store, worker in zip(self.stores, self.workers, strict=True):
            await store.close_worker(worker)
            await store.close()

    async def _connection(self) -> Connection:
        return self.idle.pop() if self.idle else await asyncpg.connect(self.dsn)

    def _job(self, due: Due | None = None) -> NewJob:
        job = new_job(queue=self.queue, due=due or Due())
        self.unfinished.add(job.id)
        return job


async def run(database: Database, steps: list[Step], *, patience_us: int, sweep: bool) -> None:
    """One history, at the end of which every job must be found."""
    histories = Histories(database.worker)
    with pytest.MonkeyPatch.context() as patch:
        # Calls follow each other here, so nothing happens between a look at the clock and the first write.
        patch.setattr(bounds, "MARGIN_US", 0)
        patch.setattr(bounds, "LOOK_EVERY_US", 0)
        patch.setattr(bounds, "PATIENCE_US", patience_us)
        try:
            await histories.begin()
            for step in steps:
                await histories.take(step)
            await histories.drain(sweep=sweep)
        finally:
            await histories.close()


generated = settings(
    max_examples=20,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would take minutes here
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@generated
@given(steps=steps(*CALLS))
async def test_no_job_is_left_behind(database: Database, steps: list[Step]) -> None:
    """Whatever two workers and transactions of any length do: one look and one claim find all that is left."""
    await run(database, steps, patience_us=bounds.PATIENCE_US, sweep=False)


@generated
@given(steps=steps(*CALLS, "insert_by_hand", "sweep"), patience_us=st.sampled_from([0, 5_000, 50_000]))
async def test_sweep_leaves_no_job_behind(database: Database, steps: list[Step], patience_us: int) -> None:
    """The same with rows written in the past, and transactions longer than anybody waits for."""
    await run(database, steps, patience_us=patience_us, sweep=True)
