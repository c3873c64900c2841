"""
The way of a command, against a hand-written asyncpg script: ``python -m benchmarks.command_pipeline``.

Jobs publish commands, each on an aggregate of its own that has one event: load, handle, append one event, receipt,
completion. The script claims with the same statement, and for each job sends the same two statements, with a
connection for each job that it has at a time. Both run in turns, on the embedded Postgres with durable settings;
figures are medians.
"""

import argparse
import asyncio
import statistics
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import msgspec

from eventflow import (
    Aggregate,
    App,
    Command,
    CommandContext,
    Event,
    EventFlow,
    EventId,
    Identity,
    JobState,
    StreamId,
    SystemClock,
    WorkerId,
    WorkerSettings,
    applies,
)
from eventflow.devdb import EmbeddedPostgres
from eventflow.postgres import Connection, PooledConnection, migrate
from eventflow.postgres.statements import statement

clock = SystemClock()
flow = EventFlow("command_pipeline")


class AccountId(Identity):
    """Of an account."""


class Deposited(Event):
    """Money came in."""

    cents: int


class Account(Aggregate[AccountId]):
    """Holds money."""

    cents: int = 0

    @applies
    def _deposited(self, event: Deposited) -> None:
        self.cents += event.cents


class Deposit(Command[AccountId, int]):
    """Add money; returns the balance."""

    cents: int


class Countdown:
    """Tells when so many commands have been handled, so that nobody looks at the jobs while they are at it."""

    def __init__(self) -> None:
        self.left = 0
        self.done = asyncio.Event()

    def begin(self, number: int) -> None:
        """From now on, so many."""
        self.left = number
        self.done.clear()

    def one(self) -> None:
        """One more is handled."""
        self.left -= 1
        if self.left == 0:
            self.done.set()


countdown = Countdown()


@flow.command_handler
async def deposit(account: Account, command: Deposit, context: CommandContext) -> int:
    """Accept everything."""
    account.emit(Deposited(cents=command.cents))
    countdown.one()
    return account.cents


class Script:
    """What one would write by hand."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool
        self._worker = WorkerId.new()
        self._claimed: deque[asyncpg.Record] = deque()
        self._event = msgspec.json.Decoder(Deposited)
        self._command = msgspec.json.Decoder(Deposit, dec_hook=lambda wanted, value: wanted(value))

    async def run(self, concurrency: int, jobs: int) -> None:
        """Run so many jobs, so many at a time."""
        record = (self._worker.uuid, "host", 1, "0", None, concurrency)
        await self._pool.execute(statement("open_worker"), *record)
        left = [jobs]
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(self._work(left))

    async def _work(self, left: list[int]) -> None:
        async with self._pool.acquire() as connection:
            while left[0] > 0:
                if not self._claimed:
                    await self._claim(connection)
                while self._claimed:
                    left[0] -= 1
                    await self._execute(connection, self._claimed.popleft())

    async def _claim(self, connection: PooledConnection) -> None:
        names, versions, bounds = ["PublishCommand:Deposit"], [1], list[int]()
        arguments = (self._worker.uuid, None, names, versions, 50, 0, 0, False, False, 2**62, 0, bounds)
        rows = await connection.fetch(statement("claim_jobs"), *arguments)
        self._claimed.extend(row for row in rows if row["id"] is not None)

    async def _execute(self, connection: PooledConnection, job: asyncpg.Record) -> None:
        command = self._command.decode(job["payload"])
        owner = str.__str__(command.aggregate_id)
        source = str.__str__(command.source_id)
        events = await connection.fetch(statement("look_back"), "Account", owner, "Account", owner, source, None)
        balance = sum(self._event.decode(row["data"]).cents for row in events) + command.cents
        version = len(events)
        event_id = EventId.at(StreamId("Account", owner), version + 1)
        metadata = {"source_id": source, "command": "Deposit", "job_id": f"job-{job['id']}"}
        none: list[object] = []
        await connection.fetch(
            statement("commit_changes"),
            *(True, self._worker.uuid, job["id"], job["claim_no"], job["ready_us"], 1),
            *("Account", owner, version, [event_id.uuid], ["Deposited"], [1]),
            *([msgspec.json.encode(Deposited(cents=command.cents)).decode()], msgspec.json.encode(metadata).decode()),
            *("Account", owner, source, str(balance)),
            *(None, None, None, none, none, None, None, None, None, None, None, None, none, none),
            *([none] * 14),
        )


async def measure_pipeline(app: App, dsn: str, *, jobs: int, rounds: int) -> dict[str, float]:
    """Both ways, in turns, at 1 and at 16 commands at a time; commands per second."""
    figures: dict[str, float] = {}
    for concurrency in (1, 16):
        pool = asyncpg.create_pool(dsn, min_size=concurrency, max_size=concurrency)
        async with pool:
            times: dict[str, list[float]] = {"eventflow": [], "by hand": []}
            for _ in range(rounds):
                for name, seconds in times.items():
                    await _schedule(app, jobs)
                    with_worker, by_hand = _with_worker(app, concurrency, jobs), _by_hand(pool, concurrency, jobs)
                    seconds.append(await _timed(with_worker if name == "eventflow" else by_hand))
        figures[f"commands_{concurrency}_per_second"] = jobs / statistics.median(times["eventflow"])
        figures[f"commands_{concurrency}_by_hand_per_second"] = jobs / statistics.median(times["by hand"])
    return figures


async def _schedule(app: App, jobs: int) -> None:
    ids = [AccountId.new() for _ in range(jobs)]
    await asyncio.gather(*(app.commands.publish(Deposit(aggregate_id=i, cents=1)) for i in ids))
    await app.commands.schedule_many([Deposit(aggregate_id=i, cents=2) for i in ids])


def _with_worker(app: App, concurrency: int, jobs: int) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        countdown.begin(jobs)
        async with app.worker(WorkerSettings(concurrency=concurrency)):
            await countdown.done.wait()
            while any([await app.jobs.find(state=state, limit=1) for state in (JobState.WAITING, JobState.RUNNING)]):
                await clock.sleep(0.001)

    return run


def _by_hand(pool: "asyncpg.Pool[asyncpg.Record]", concurrency: int, jobs: int) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        await Script(pool).run(concurrency, jobs)

    return run


async def _timed(run: Callable[[], Awaitable[None]]) -> float:
    started = clock.monotonic()
    await run()
    return clock.monotonic() - started


async def measure_loading(app: App, dsn: str, *, events: int, rounds: int) -> dict[str, float]:
    """An aggregate of many events, against fetching and decoding the same rows; events per second."""
    owner = AccountId.new()
    for _ in range(events):
        await app.commands.publish(Deposit(aggregate_id=owner, cents=1))
    connection: Connection = await asyncpg.connect(dsn)
    decoder = msgspec.json.Decoder(Deposited)

    async def by_hand() -> None:
        rows = await connection.fetch(statement("look_back"), "Account", owner, "", "", "", None)
        total = sum(decoder.decode(row["data"]).cents for row in rows)
        assert total == events

    async def ours() -> None:
        assert (await app.aggregates.load(Account, owner)).cents == events

    times: dict[Callable[[], Awaitable[None]], list[float]] = {ours: [], by_hand: []}
    for _ in range(rounds):
        for run, seconds in times.items():
            seconds.append(await _timed(run))
    await connection.close()
    return {
        "events_per_second": events / statistics.median(times[ours]),
        "events_by_hand_per_second": events / statistics.median(times[by_hand]),
    }


async def measure(dsn: str, *, jobs: int, rounds: int, events: int = 1_000) -> dict[str, float]:
    """Every part; the rates of both ways."""
    admin: Connection = await asyncpg.connect(dsn)
    await migrate(admin)
    await admin.close()
    async with flow.open(dsn) as app:
        loading = await measure_loading(app, dsn, events=events, rounds=20 * rounds)
        return loading | await measure_pipeline(app, dsn, jobs=jobs, rounds=rounds)


def main() -> None:
    """Start the server and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2_000, help="commands in each round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each way")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="eventflow-bench-") as directory,
        EmbeddedPostgres(Path(directory) / "postgres") as server,
    ):
        figures = asyncio.run(measure(server.dsn(), jobs=options.jobs, rounds=options.rounds))
    for what, ours in (
        ("commands, 1 at a time", "commands_1"),
        ("commands, 16 at a time", "commands_16"),
        ("loading 1,000 events", "events"),
    ):
        mine, theirs = figures[f"{ours}_per_second"], figures[f"{ours}_by_hand_per_second"]
        print(f"{what:24} {mine:9,.0f}/s, by hand {theirs:9,.0f}/s, ratio {mine / theirs:.2f}")


if __name__ == "__main__":
    main()
