"""Reading all events on Postgres: each once, each stream in order, whatever transactions are open, at what it costs."""

from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random

import anyio
import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from eventflow import SystemClock
from eventflow.errors import ForeignCursorError, ForeignEventsError, OptimisticConcurrencyError
from eventflow.eventstore import StoredEvent, StreamId
from eventflow.postgres import Connection, connector
from eventflow.postgres.all_events import Cursor, Visible, read_page
from eventflow.postgres.connection import Lanes, LaneStack
from eventflow.postgres.statements import statement
from tests.support.event_stores import EventStores, changes, event_stores, stream
from tests.support.postgres import Database
from tests.support.waiting import eventually

CLOCK = SystemClock()
Position = tuple[str, int]
"""An event: of which stream, which version."""


@pytest.fixture
async def stores(database: Database) -> AsyncGenerator[EventStores]:
    """An empty store on Postgres."""
    async with event_stores(database) as opened:
        yield opened


class Reader:
    """
    Reads all events, a page at a time, each time from the text of its cursor.

    Attributes:
        shown: What it was shown, in order.
    """

    def __init__(self, stores: EventStores, *, limit: int = 1000) -> None:
        self.shown: list[Position] = []
        self.cursor = ""
        self._stores = stores
        self._limit = limit
        self._versions = Counter[str]()

    async def read(self) -> bool:
        """Read a page, check that no event is repeated or left out within its stream; whether it was the last."""
        page = await self._stores.events.read_all(self.cursor, limit=self._limit)
        self.cursor = page.cursor
        assert len(page.events) <= self._limit
        assert page.events or page.is_last
        for event in page.events:
            owner = event.stream.aggregate_id
            assert event.stream_version == self._versions[owner] + 1, f"{owner} is shown out of order"
            self._versions[owner] += 1
            self.shown.append((owner, event.stream_version))
        return page.is_last

    async def read_to_end(self) -> list[Position]:
        """Read until nothing is left; what was shown meanwhile."""
        before = len(self.shown)
        while not await self.read():
            pass
        return self.shown[before:]


class Writer:
    """A connection of a worker's, with transactions of its own."""

    def __init__(self, stores: EventStores, connection: Connection) -> None:
        self.connection = connection
        self._stores = stores

    async def execute(self, sql: str) -> None:
        """Run a statement."""
        await self.connection.execute(sql)

    async def append(self, to: StreamId, version: int) -> None:
        """Append the event that gets this version, in the open transaction."""
        change = changes(to, str(version), expected_version=version - 1)
        await self._stores.events.append(change, connection=self.connection)

    async def append_next(self, to: StreamId) -> Position:
        """Wait for others who write to the stream, and append its next event."""
        await self.connection.fetch(statement("lock_stream"), to.aggregate_name, to.aggregate_id)
        loaded = await self._stores.events.load(to, connection=self.connection)
        await self.append(to, len(loaded) + 1)
        return to.aggregate_id, len(loaded) + 1


@asynccontextmanager
async def writer(stores: EventStores, database: Database) -> AsyncGenerator[Writer]:
    """One that connects for the time of a block."""
    connection = await asyncpg.connect(database.worker, command_timeout=60)
    try:
        yield Writer(stores, connection)
    finally:
        await connection.close(timeout=5)


@given(
    begun=st.integers(1, 12),
    ended=st.sets(st.integers(1, 17)),
    more=st.integers(0, 5),
    later=st.sets(st.integers(1, 17)),
)
def test_a_delta_is_the_transactions_that_ended_meanwhile(
    begun: int, ended: set[int], more: int, later: set[int]
) -> None:
    """Each in one range, those that run in none; and no range is empty."""
    before = Visible(begun, tuple(xid for xid in range(1, begun) if xid not in ended))
    now = Visible(begun + more, tuple(xid for xid in range(1, begun + more) if xid not in ended | later))

    ranges = now.since(before)

    expected = {xid for xid in range(1, now.end) if xid not in now.running}
    expected -= {xid for xid in range(1, before.end) if xid not in before.running}
    assert sorted(xid for first, last in ranges for xid in range(first, last + 1)) == sorted(expected)
    assert all(first <= last for first, last in ranges)


TAKE_XID = "SELECT pg_current_xact_id()"


async def test_a_transaction_that_stays_open_holds_nothing_up(stores: EventStores, database: Database) -> None:
    """Who reads meanwhile sees all others at once; what it wrote first comes when it commits, and nothing else."""
    first, others = stream(), [stream() for _ in range(3)]
    reader, late_reader = Reader(stores), Reader(stores, limit=2)
    async with writer(stores, database) as slow:
        await slow.execute("BEGIN")
        await slow.append(first, 1)
        for version in range(1, 6):
            for each in others:
                await stores.append(each, str(version), expected_version=version - 1)
            assert len(await reader.read_to_end()) == 3
        await late_reader.read_to_end()
        await slow.append(first, 2)
        assert await reader.read_to_end() == []
        await slow.execute("COMMIT")

    assert await reader.read_to_end() == [(first.aggregate_id, 1), (first.aggregate_id, 2)]
    assert await late_reader.read_to_end() == [(first.aggregate_id, 1), (first.aggregate_id, 2)]


@pytest.mark.parametrize("looks_between", [True, False])
async def test_a_stream_is_in_order_whenever_transactions_began(
    stores: EventStores, database: Database, looks_between: bool
) -> None:
    """The first version is of a transaction that began after that of the second, whose id is lower."""
    order, reader = stream(), Reader(stores)
    async with writer(stores, database) as early:
        await early.execute("BEGIN")
        await early.execute(TAKE_XID)
        await stores.append(order, "1")
        if looks_between:
            await reader.read_to_end()
        await early.append(order, 2)
        await early.execute("COMMIT")
        await stores.append(order, "3", expected_version=2)
    await reader.read_to_end()

    assert reader.shown == [(order.aggregate_id, version) for version in (1, 2, 3)]


async def test_what_is_undone_is_never_shown(stores: EventStores, database: Database) -> None:
    """Neither with a savepoint nor with the transaction; what takes its place is shown."""
    order, aborted, reader = stream(), stream(), Reader(stores)
    async with writer(stores, database) as undoing:
        await undoing.execute("BEGIN")
        await undoing.append(order, 1)
        await undoing.execute("SAVEPOINT here")
        await undoing.append(order, 2)
        await undoing.append(order, 3)
        await undoing.execute("ROLLBACK TO here")
        assert await reader.read_to_end() == []
        await undoing.append(order, 2)
        await undoing.execute("COMMIT")
        await undoing.execute("BEGIN")
        await undoing.append(aborted, 1)
        await undoing.execute("ROLLBACK")
    await stores.append(aborted, "1")
    await reader.read_to_end()

    assert reader.shown == [(order.aggregate_id, 1), (order.aggregate_id, 2), (aborted.aggregate_id, 1)]


async def test_what_was_late_is_in_its_place_among_many(stores: EventStores, database: Database) -> None:
    """Large late transactions end while a reader is far behind, and again while it catches up page by page."""
    late, later, crowd = stream(), stream(), stream()
    for each in (late, later, crowd):
        await stores.append(each, "1")
    readers = [Reader(stores, limit=limit) for limit in (1, 4, 7, 1000)]
    async with writer(stores, database) as slow, writer(stores, database) as slower:
        for each, to in ((slow, late), (slower, later)):
            await each.execute("BEGIN")
            for version in range(2, 12):
                await each.append(to, version)
        for version in range(2, 20):
            await stores.append(crowd, "1", expected_version=version - 1)
        for reader in readers:
            await reader.read_to_end()
        for version in range(20, 40):
            await stores.append(crowd, "1", expected_version=version - 1)
        await slow.execute("COMMIT")
        for reader in readers:
            await reader.read()
        await slower.execute("COMMIT")
        await stores.append(late, "1", expected_version=11)

    expected = {(late.aggregate_id, n) for n in range(1, 13)} | {(later.aggregate_id, n) for n in range(1, 12)}
    expected |= {(crowd.aggregate_id, n) for n in range(1, 40)}
    for reader in readers:
        await reader.read_to_end()
        assert set(reader.shown) == expected
        assert len(reader.shown) == len(expected)


@pytest.mark.parametrize("ends", ["COMMIT", "ROLLBACK"])
async def test_writers_of_a_stream_take_turns(
    stores: EventStores, database: Database, admin: Connection, ends: str
) -> None:
    """Who would write the same version waits for the other's end, and learns then whether the stream has changed."""
    order, failed = stream(), list[OptimisticConcurrencyError]()

    async def append() -> None:
        try:
            await stores.append(order, '"waited"')
        except OptimisticConcurrencyError as exc:
            failed.append(exc)

    async def somebody_waits() -> bool:
        return await admin.fetchval("SELECT exists(SELECT FROM pg_locks WHERE NOT granted)")

    async with writer(stores, database) as first, anyio.create_task_group() as group:
        await first.execute("BEGIN")
        await first.append(order, 1)
        group.start_soon(append)
        await eventually(somebody_waits)
        await first.execute(ends)

    assert len(failed) == (ends == "COMMIT")
    assert await stores.load(order) == ["1" if ends == "COMMIT" else '"waited"']


WRITERS = 16
TRANSACTIONS = 12


class Crowd:
    """
    Writers who append to the same few streams in transactions of any shape.

    Attributes:
        running: Writers that have not finished.
        committed: What they have committed.
    """

    def __init__(self, stores: EventStores, database: Database) -> None:
        self.running = WRITERS
        self.committed: list[Position] = []
        self._stores = stores
        self._database = database
        self._streams = [stream(f"order-{number}") for number in range(6)]

    async def write(self, seed: int) -> None:
        """Write as one of them."""
        rng = Random(seed)
        async with writer(self._stores, self._database) as one:
            for _ in range(TRANSACTIONS):
                await self._transaction(one, rng)
        self.running -= 1

    async def _transaction(self, one: Writer, rng: Random) -> None:
        await one.execute("BEGIN")
        if rng.random() < 0.3:
            await one.execute(TAKE_XID)
            await self._pause(rng)
        written: list[Position] = []
        streams = sorted(rng.sample(range(len(self._streams)), k=rng.randint(1, 3)))  # sorted: no deadlocks
        for number in streams:
            if rng.random() < 0.2:
                await one.execute("SAVEPOINT here")
                await one.append_next(self._streams[number])
                await self._pause(rng)
                await one.execute("ROLLBACK TO here")
            written += [await one.append_next(self._streams[number]) for _ in range(rng.randint(1, 3))]
        await self._pause(rng)
        if rng.random() < 0.2:
            await one.execute("ROLLBACK")
        else:
            await one.execute("COMMIT")
            self.committed += written

    async def _pause(self, rng: Random) -> None:
        await CLOCK.sleep(rng.choice((0, 0.001, 0.01)))


async def test_readers_among_many_writers_see_every_event_once(stores: EventStores, database: Database) -> None:
    """16 writers pause between insert and commit, roll back, and take transaction ids long before they append."""
    crowd, idle = Crowd(stores, database), stream()
    readers = [Reader(stores, limit=limit) for limit in (1, 5, 1000)]

    async def read(reader: Reader) -> None:
        while crowd.running:
            await reader.read()

    async with writer(stores, database) as slow:
        await slow.execute("BEGIN")
        await slow.append(idle, 1)
        async with anyio.create_task_group() as group:
            for reader in readers:
                group.start_soon(read, reader)
            for number in range(WRITERS):
                group.start_soon(crowd.write, number)
        for reader in readers:
            await reader.read_to_end()
            assert sorted(reader.shown) == sorted(crowd.committed)
        await slow.execute("COMMIT")

    assert len(crowd.committed) > 300
    for reader in readers:
        assert await reader.read_to_end() == [(idle.aggregate_id, 1)]


class Step(msgspec.Struct, frozen=True):
    """
    One call.

    Attributes:
        who: Number of the connection, or of the reader.
        where: Number of the stream.
    """

    call: str
    who: int
    where: int


CONNECTIONS = 4
STREAMS = 4
CALLS = (
    *("begin", "begin_early", "append", "append", "append", "append", "commit", "commit", "commit"),
    *("take_xid", "savepoint", "rollback_to", "abort", "read", "read", "read", "read_to_end"),
)
STEPS = st.lists(
    st.builds(
        Step,
        call=st.sampled_from(CALLS),
        who=st.integers(0, CONNECTIONS - 1),
        where=st.integers(0, STREAMS - 1),
    ),
    min_size=30,
    max_size=60,
)


class Open:
    """What a connection has written and not committed; the savepoints say how much of it was written before them."""

    def __init__(self) -> None:
        self.written: list[Position] = []
        self.savepoints: list[int] = []


class Model:
    """What must be true, kept beside the store."""

    def __init__(self, stores: EventStores, writers: Sequence[Writer]) -> None:
        self._streams = [stream() for _ in range(STREAMS)]
        self._writers = writers
        self._open: list[Open | None] = [None] * len(writers)
        self._committed: set[Position] = set()
        self._readers = [Reader(stores, limit=limit) for limit in (1, 2, 100)]

    async def take(self, step: Step) -> None:
        """Make a call, if it can be made, and check what is seen."""
        who = step.who % len(self._writers)
        if step.call.startswith("read"):
            await self._read(self._readers[step.who % len(self._readers)], to_end=step.call == "read_to_end")
            return
        transaction = self._open[who]
        if transaction is None:
            transaction = self._open[who] = Open()
            await self._writers[who].execute("BEGIN")
            if step.call == "begin_early":
                await self._take_xid(who, transaction, step)
        elif not step.call.startswith("begin"):
            await getattr(self, f"_{step.call}")(who, transaction, step)

    async def _take_xid(self, who: int, transaction: Open, step: Step) -> None:
        await self._writers[who].execute(TAKE_XID)

    async def _append(self, who: int, transaction: Open, step: Step) -> None:
        others = [other for other in self._open if other is not None and other is not transaction]
        taken = {owner for other in others for owner, _ in other.written}  # it would wait for the other's end
        free = [each for each in self._streams if each.aggregate_id not in taken]
        if free:
            to = free[step.where % len(free)]
            written = [owner for owner, _ in (*self._committed, *transaction.written)]
            version = written.count(to.aggregate_id) + 1
            await self._writers[who].append(to, version)
            transaction.written.append((to.aggregate_id, version))

    async def _savepoint(self, who: int, transaction: Open, step: Step) -> None:
        await self._writers[who].execute(f"SAVEPOINT s{len(transaction.savepoints)}")
        transaction.savepoints.append(len(transaction.written))

    async def _rollback_to(self, who: int, transaction: Open, step: Step) -> None:
        if transaction.savepoints:
            number = step.where % len(transaction.savepoints)
            await self._writers[who].execute(f"ROLLBACK TO s{number}")
            del transaction.written[transaction.savepoints[number] :]
            del transaction.savepoints[number + 1 :]

    async def _commit(self, who: int, transaction: Open, step: Step) -> None:
        await self._writers[who].execute("COMMIT")
        self._committed.update(transaction.written)
        self._open[who] = None

    async def _abort(self, who: int, transaction: Open, step: Step) -> None:
        await self._writers[who].execute("ROLLBACK")
        self._open[who] = None

    async def _read(self, reader: Reader, *, to_end: bool) -> None:
        is_last = await reader.read()
        while to_end and not is_last:
            is_last = await reader.read()
        assert set(reader.shown) <= self._committed
        if is_last:
            assert set(reader.shown) == self._committed, "something committed is not shown"

    async def end(self) -> None:
        """End what is open; all readers see all there is."""
        for who, transaction in enumerate(self._open):
            if transaction is not None:
                await self._commit(who, transaction, Step("commit", who, 0))
        for reader in self._readers:
            await self._read(reader, to_end=True)
            assert len(reader.shown) == len(self._committed)


@pytest.fixture
async def writers(stores: EventStores, database: Database) -> AsyncGenerator[list[Writer]]:
    """As many as there can be at once."""
    async with AsyncExitStack() as opened:
        yield [await opened.enter_async_context(writer(stores, database)) for _ in range(CONNECTIONS)]


@settings(
    max_examples=100,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would take minutes here
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS, connections=st.integers(2, CONNECTIONS))
async def test_every_interleaving_is_read_once_and_in_order(
    admin: Connection, stores: EventStores, writers: list[Writer], steps: list[Step], connections: int
) -> None:
    """Whatever transactions do and whenever a page is read: what is committed is shown, once, streams in order."""
    await admin.execute("TRUNCATE eventflow.event")
    model = Model(stores, writers[:connections])
    try:
        for step in steps:
            await model.take(step)
        await model.end()
    finally:
        for each in writers:
            if each.connection.is_in_transaction():
                await each.execute("ROLLBACK")


LOG = 200_000
PAGE = 2_000
PER_EVENT = 2
"""Database pages that an event of a page costs at most: that of its row, and less than one of an index."""
IDLE = 20
"""Those of a look that finds nothing."""

FILL = """
    INSERT INTO eventflow.event (aggregate_name, aggregate_id, stream_version, xid, id, name, version, data, metadata)
    SELECT 'Order', 'order-' || n % 1000, n / 1000 + 1, (3 + n / 300)::text::xid8, gen_random_uuid(), 'Noted', 1,
        '{"filler": "..............................................................................................."}',
        '{"source_id": "test"}'
    FROM generate_series(0, $1 - 1) AS n
"""
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


async def test_a_cursor_of_another_cluster_is_refused(stores: EventStores) -> None:
    """Its transaction ids have not been reached here: what they would hide could never be told."""
    await stores.append(stream(), "1")
    ahead = Cursor(Visible(2**40, (2**39,)))

    with pytest.raises(ForeignCursorError) as refused:
        await stores.events.read_all(str(ahead))

    assert refused.value.seen == 2**40


async def test_events_of_another_cluster_are_refused(stores: EventStores, admin: Connection) -> None:
    """They were copied with transaction ids that this cluster has yet to use: nobody begins to read them."""
    await admin.execute(FILL, 10)
    assert len(await stores.read_all()) == 10
    await admin.execute("UPDATE eventflow.event SET xid = '1099511627776' WHERE stream_version = 1 AND position = 10")

    with pytest.raises(ForeignEventsError) as refused:
        await stores.events.read_all()

    assert refused.value.xid == 2**40
