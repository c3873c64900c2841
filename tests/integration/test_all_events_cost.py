"""Reading all events on Postgres: what a page costs, however long the log and however late a transaction."""

from collections.abc import AsyncGenerator, Sequence

import pytest

from eventflow.eventstore import StoredEvent
from eventflow.postgres import Connection, connector
from eventflow.postgres.all_events import read_page
from eventflow.postgres.connection import Lanes, LaneStack
from tests.support.all_events import FILL, writer
from tests.support.event_stores import EventStores, changes, stream
from tests.support.postgres import Database

LOG = 200_000
PAGE = 2_000
PER_EVENT = 2
"""Database pages that an event of a page costs at most: that of its row, and less than one of an index."""
IDLE = 20
"""Those of a look that finds nothing."""
MANY = 30_000
APPEND_MANY = """
    DO $$
    BEGIN
        FOR n IN 0 .. 4999 LOOP
            INSERT INTO eventflow.event
                (aggregate_name, aggregate_id, stream_version, id, name, version, data, metadata)
            SELECT 'Order', 'more-' || n, v, gen_random_uuid(), 'Noted', 1, '{}', '{"source_id": "test"}'
            FROM generate_series(1, 6) AS v;
            COMMIT;
        END LOOP;
    END
    $$
"""
PAGES_READ = """
    SELECT heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read FROM pg_statio_user_tables
    WHERE relid = 'eventflow.event'::regclass
"""


class Counted:
    """A reader who counts the database's pages, of the events and their indexes, that it reads."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes

    async def read(self, cursor: str, *, limit: int = PAGE) -> tuple[Sequence[StoredEvent], str, int]:
        """A page: its events, its cursor, and what it cost."""
        before = await self._pages_read()
        page = await read_page(self._lanes, "eventflow", cursor, limit)
        return page.events, page.cursor, await self._pages_read() - before

    async def _pages_read(self) -> int:
        async with self._lanes.connection() as connection:
            await connection.execute("SELECT pg_stat_force_next_flush()")
            return await connection.fetchval(PAGES_READ)


@pytest.fixture
async def counted(dsn: str) -> AsyncGenerator[Counted]:
    """One with a worker's connection, which keeps its plans."""
    lanes = LaneStack(connector(dsn, name="counted"), "eventflow")
    yield Counted(lanes.share(1))
    for lane in lanes:
        await lane.close()


async def test_a_page_costs_what_it_shows(admin: Connection, counted: Counted, stores: EventStores) -> None:
    """However long the log, and however far behind the reader; also for plans made when there was hardly anything."""
    await admin.execute("ALTER TABLE eventflow.event SET (autovacuum_enabled = off)")
    await stores.append(stream(), *"123")
    await admin.execute("VACUUM ANALYZE eventflow.event")
    for _ in range(10):  # enough for each statement to get the plan that it keeps
        _, cursor, _ = await counted.read("", limit=1)
        await counted.read(cursor, limit=1)
        await counted.read(cursor)
    await admin.execute("DELETE FROM eventflow.event")
    await admin.execute(FILL, LOG)

    _, cursor, cost = await counted.read("")  # a first read, while others append
    await admin.execute(APPEND_MANY)
    shown, cursor, costs = await _read_to_end(counted, cursor)
    pages = LOG // PAGE - 1
    assert shown == LOG - PAGE + MANY
    assert max(cost, *costs[:pages]) < PAGE // 8, "a page stands in one piece"
    assert costs[pages] < MANY // 3, "finding where so many begin takes a look at each of their index entries"
    assert max(costs[pages + 1 :]) < PAGE * PER_EVENT

    _, cursor, cost = await counted.read(cursor)  # nothing new
    assert cost < IDLE
    order = stream()
    for version in range(1, 11):  # the usual case: a few
        await stores.append(order, "1", expected_version=version - 1)
    events, cursor, cost = await counted.read(cursor)
    assert len(events) == 10
    assert cost < IDLE + 10 * PER_EVENT

    await admin.execute("ANALYZE eventflow.event")  # statistics change nothing
    assert (await counted.read(cursor))[2] < IDLE
    cursor = ""
    for _ in range(5):
        _, cursor, cost = await counted.read(cursor)
        assert cost < PAGE * PER_EVENT


async def test_a_late_transaction_does_not_cost_the_log_behind_it(
    admin: Connection, counted: Counted, stores: EventStores, database: Database
) -> None:
    """Its events stand far before those that came meanwhile, and nothing between is walked over."""
    cursor = (await counted.read(""))[1]
    late = stream()
    async with writer(stores, database) as slow:
        await slow.execute("BEGIN")
        for version in range(1, 3 * PAGE, PAGE // 2):
            data = ["1"] * (PAGE // 2)
            await stores.events.append(changes(late, *data, expected_version=version - 1), connection=slow.connection)
        await admin.execute(FILL, LOG)
        await stores.append(stream(), "1")
        shown, cursor, _ = await _read_to_end(counted, cursor)
        assert shown == 1  # what fills the log is made to look old
        await slow.execute("COMMIT")
        await stores.append(stream(), "1")
    shown, cursor, costs = await _read_to_end(counted, cursor)

    assert shown == 3 * PAGE + 1
    assert max(costs) < PAGE * PER_EVENT


async def test_open_transactions_are_not_read(counted: Counted, stores: EventStores, database: Database) -> None:
    """However much they have written: who follows the log skips their events until they commit."""
    cursor = (await counted.read(""))[1]
    async with writer(stores, database) as slow:
        await slow.execute("BEGIN")
        for _ in range(5):
            await stores.events.append(changes(stream(), *["1"] * PAGE), connection=slow.connection)
        for _ in range(2):  # at first it is new, then it is known
            await stores.append(stream(), "1")
            events, cursor, cost = await counted.read(cursor)
            assert len(events) == 1
            assert cost < IDLE + PER_EVENT
        await slow.execute("COMMIT")

    assert (await _read_to_end(counted, cursor))[0] == 5 * PAGE


async def _read_to_end(counted: Counted, cursor: str) -> tuple[int, str, list[int]]:
    """How many events there are, the last cursor, and the cost of each page."""
    shown, costs = 0, list[int]()
    while True:
        events, cursor, cost = await counted.read(cursor)
        shown += len(events)
        costs.append(cost)
        if len(events) < PAGE:
            return shown, cursor, costs
