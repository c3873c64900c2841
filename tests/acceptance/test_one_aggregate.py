"""Many publish to one aggregate, from many processes."""

import asyncio
import collections
import multiprocessing
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier

import anyio

from eventflow import Aggregate, App, Command, CommandContext, Event, EventFlow, Identity, applies
from tests.support.journal import query

PROCESSES = 4
EACH = 250
MOST_SECONDS = 60.0

spawned = multiprocessing.get_context("spawn")


class CounterId(Identity):
    """A counter."""


class Counted(Event):
    by: int


class Counter(Aggregate[CounterId], snapshot_every=50):
    count: int = 0

    @applies
    def _counted(self, event: Counted) -> None:
        self.count += 1


class Count(Command[CounterId, int]):
    """Returns how often was counted, this time included."""

    by: int


flow = EventFlow("counters")


@flow.command_handler
async def count(counter: Counter, command: Count, context: CommandContext) -> int:
    counter.emit(Counted(by=command.by))
    return counter.count


async def test_a_thousand_commands_on_one_aggregate_all_succeed(dsn: str, admin_dsn: str) -> None:
    """
    From four processes, 250 at the same time in each: every version is there once, and every caller has its own result.

    None gives up after its six tries, since from the third on it holds the stream; and none waits for another in a
    circle.
    """
    counter_id = CounterId.new()
    with processes(dsn, counter_id) as results:
        counts = [await asyncio.to_thread(results.get, timeout=MOST_SECONDS) for _ in range(PROCESSES)]

    rows = await query(
        admin_dsn, "SELECT stream_version, data ->> 'by' AS by FROM eventflow.event WHERE aggregate_id = $1", counter_id
    )
    assert sorted(row["stream_version"] for row in rows) == list(range(1, PROCESSES * EACH + 1))
    assert collections.Counter(row["by"] for row in rows) == {str(number): EACH for number in range(PROCESSES)}
    assert sorted(result for each in counts for result in each) == list(range(1, PROCESSES * EACH + 1))
    [row] = await query(admin_dsn, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    assert row["deadlocks"] == 0


@contextmanager
def processes(dsn: str, counter_id: CounterId) -> "Generator[multiprocessing.Queue[list[int]]]":
    """Four that begin at the same moment; what each puts there is its results."""
    start, results = spawned.Barrier(PROCESSES), spawned.Queue()
    started = [
        spawned.Process(target=publish_all, args=(dsn, str(counter_id), number, start, results), daemon=True)
        for number in range(PROCESSES)
    ]
    for process in started:
        process.start()
    try:
        yield results
    finally:
        for process in started:
            process.kill()
            process.join()


def publish_all(
    dsn: str, counter_id: str, number: int, start: Barrier, results: "multiprocessing.Queue[list[int]]"
) -> None:
    """One process: all of its commands at the same time."""
    counts: list[int] = []

    async def publish(app: App) -> None:
        counts.append(await app.commands.publish(Count(aggregate_id=CounterId(counter_id), by=number)))

    async def main() -> None:
        async with flow.open(dsn) as app:
            await asyncio.to_thread(start.wait)
            async with anyio.create_task_group() as group:
                for _ in range(EACH):
                    group.start_soon(publish, app)

    asyncio.run(main())
    results.put(counts)
