"""Reading all events on Postgres: each once, each stream in order, whatever transactions are open."""

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventflow.errors import ForeignCursorError, ForeignEventsError, OptimisticConcurrencyError
from eventflow.postgres import Connection
from eventflow.postgres.all_events import Cursor, Visible
from tests.support.all_events import FILL, TAKE_XID, Reader, writer
from tests.support.event_stores import EventStores, stream
from tests.support.postgres import Database
from tests.support.waiting import eventually


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
