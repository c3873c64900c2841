"""Event stores: streams, receipts and snapshots, and that a command's changes are written as one."""

from datetime import UTC, timedelta

import anyio
import pytest

from eventflow.errors import (
    DuplicateOperationError,
    ForeignCursorError,
    InvalidCursorError,
    OptimisticConcurrencyError,
)
from eventflow.eventstore import EventId, EventMetadata, History, NewEvent
from tests.support.event_stores import EventStores, changes, receipt, receipt_key, snapshot, stream
from tests.support.job_stores import new_job


async def test_events_are_loaded_as_they_were_appended(stores: EventStores) -> None:
    """In order, with versions from 1 without gaps, whatever number of them each append wrote."""
    order = stream()
    await stores.append(order, "1", "2", "3")
    await stores.append(order, "4", expected_version=3)
    await stores.append(order, "5", "6", expected_version=4)

    loaded = await stores.events.load(order)

    assert [(event.stream_version, event.data) for event in loaded] == [(n, str(n)) for n in range(1, 7)]
    assert {event.stream for event in loaded} == {order}
    assert [event.id for event in loaded] == [EventId.at(order, n) for n in range(1, 7)]


async def test_a_part_of_a_stream_is_loaded(stores: EventStores) -> None:
    """Those beyond a version, and no more than are wanted."""
    order = stream()
    await stores.append(order, *map(str, range(1, 8)))

    async def load(after: int, limit: int | None) -> list[str]:
        return [event.data for event in await stores.events.load(order, after=after, limit=limit)]

    assert await load(4, None) == ["5", "6", "7"]
    assert await load(0, 2) == ["1", "2"]
    assert await load(2, 3) == ["3", "4", "5"]
    assert await load(7, None) == []
    assert await load(100, 5) == []
    assert await load(0, 0) == []


async def test_streams_are_apart(stores: EventStores) -> None:
    """By the aggregate's id, and for one id by the aggregate's name: neither reads nor expects the other's events."""
    one, other, saga = stream("order-1"), stream("order-2"), stream("order-1", name="Payment")
    await stores.append(one, '"one"')
    await stores.append(other, '"other"')
    await stores.append(saga, '"saga"')

    assert [await stores.load(each) for each in (one, other, saga)] == [['"one"'], ['"other"'], ['"saga"']]
    assert await stores.load(stream("order")) == []


@pytest.mark.parametrize("expected_version", [0, 1, 3])
async def test_who_expects_another_version_writes_nothing(stores: EventStores, expected_version: int) -> None:
    """The writer has seen fewer events than there are, or more; the error says where it happened."""
    order = stream()
    await stores.append(order, "1", "2")

    with pytest.raises(OptimisticConcurrencyError) as refused:
        await stores.append(order, "3", expected_version=expected_version)

    assert (refused.value.stream, refused.value.expected_version) == (order, expected_version)
    assert await stores.load(order) == ["1", "2"]


async def test_of_many_writers_at_once_one_wins(stores: EventStores) -> None:
    """All others learn that the stream has changed, and by no other error."""
    order, conflicts = stream(), list[OptimisticConcurrencyError]()

    async def write(number: int) -> None:
        try:
            await stores.append(order, str(number))
        except OptimisticConcurrencyError as exc:
            conflicts.append(exc)

    async with anyio.create_task_group() as writers:
        for number in range(16):
            writers.start_soon(write, number)

    assert len(await stores.load(order)) == 1
    assert len(conflicts) == 15


async def test_a_refused_append_writes_nothing_of_its_changes(stores: EventStores) -> None:
    """Neither receipt nor snapshot nor events, whatever it is refused for."""
    order = stream()
    await stores.append(order, "1", receipt=receipt(order, "first"))

    with pytest.raises(OptimisticConcurrencyError):
        await stores.append(order, "2", receipt=receipt(order, "stale"), snapshot=snapshot(1))
    with pytest.raises(DuplicateOperationError):
        await stores.append(
            order, "2", expected_version=1, receipt=receipt(order, "first"), snapshot=snapshot(2, '"never"')
        )

    found = await stores.look(order, "stale", snapshot_version=1)
    assert (found.result, found.snapshot, [data for _, _, _, data in found.events]) == (None, None, ["1"])
    assert await stores.load(order) == ["1"]


async def test_changes_without_events_leave_the_version(stores: EventStores) -> None:
    """A command that only leaves its receipt is in nobody's way, and nobody in its."""
    order = stream()
    await stores.append(order, "1")
    await stores.append(order, receipt=receipt(order, "noticed"))
    await stores.append(order, "2", expected_version=1)

    assert await stores.load(order) == ["1", "2"]
    assert (await stores.look(order, "noticed")).result == "null"


async def test_an_operation_is_done_once(stores: EventStores) -> None:
    """Its receipt is refused a second time; the error names the operation."""
    order = stream("order-1")
    await stores.append(order, "1", receipt=receipt(order, "pay"))

    with pytest.raises(DuplicateOperationError) as refused:
        await stores.append(order, "2", expected_version=1, receipt=receipt(order, "pay"))

    assert (refused.value.source_id, refused.value.scope) == ("pay", "Order order-1")


async def test_a_conflict_comes_before_a_duplicate(stores: EventStores) -> None:
    """An operation that was done meanwhile by another has other events too, and is told of these."""
    order = stream()
    await stores.append(order, "1", receipt=receipt(order, "pay"))

    with pytest.raises(OptimisticConcurrencyError):
        await stores.append(order, "1", receipt=receipt(order, "pay"))


async def test_a_conflict_comes_before_a_job_that_is_there(stores: EventStores) -> None:
    """Jobs of subscribers are named after their event: who has lost the race for its number brings the same ones."""
    order, job = stream(), new_job()
    await stores.commits.commit(changes(order, "1"), [job])

    with pytest.raises(OptimisticConcurrencyError):
        await stores.commits.commit(changes(order, "1"), [job])


async def test_an_operation_at_the_same_time_is_done_once(stores: EventStores) -> None:
    """Also where it has no stream and leaves no events."""
    duplicates = list[DuplicateOperationError]()

    async def write() -> None:
        try:
            await stores.append(None, receipt=receipt(None, "tidy"))
        except DuplicateOperationError as exc:
            duplicates.append(exc)

    async with anyio.create_task_group() as writers:
        for _ in range(8):
            writers.start_soon(write)

    assert len(duplicates) == 7


async def test_the_result_of_an_operation_is_found(stores: EventStores) -> None:
    """As the JSON it was stored as, and alone: who has done it already needs no events."""
    order, result = stream(), '{"b": 1,\n "a": [1e2, "ü\\u0000"]}'
    await stores.append(order, "1", receipt=receipt(order, "pay", result), snapshot=snapshot(1))

    assert await stores.look(order, "pay", snapshot_version=1) == History(result=result)
    assert await stores.events.look(None, receipt_key(order, "pay")) == History(result=result)


async def test_a_receipt_counts_in_its_scope(stores: EventStores) -> None:
    """The same source id is another operation on another aggregate, on another kind of aggregate, and on none."""
    everywhere = [stream("order-1"), stream("order-2"), stream("order-1", name="Payment"), None]
    for number, where in enumerate(everywhere):
        assert (await stores.look(where, "same")).result is None
        await stores.events.append(changes(where, receipt=receipt(where, "same", str(number))))

    assert [(await stores.look(where, "same")).result for where in everywhere] == ["0", "1", "2", "3"]


async def test_a_look_at_a_stream_finds_its_events(stores: EventStores) -> None:
    """All of them in order if there is no snapshot; none if no stream is asked for, or it is empty."""
    order = stream()
    await stores.append(order, "1", "2")

    for found in (await stores.look(order), await stores.look(order, snapshot_version=3)):
        assert (found.result, found.snapshot) == (None, None)
        assert list(found.events) == [event.past for event in await stores.events.load(order)]
    for found in (await stores.look(None), await stores.look(stream())):
        assert (found.result, found.snapshot, list(found.events)) == (None, None, [])


async def test_a_look_begins_at_the_newest_snapshot(stores: EventStores) -> None:
    """With the events after it only; a snapshot replaces the one before."""
    order = stream()
    await stores.append(order, "1", "2", "3", snapshot=snapshot(3, '{"state":\n"three"}'))
    await stores.append(order, "4", expected_version=3)

    first = await stores.look(order, snapshot_version=1)
    await stores.append(order, "5", expected_version=4, snapshot=snapshot(5, "5"))
    second = await stores.look(order, snapshot_version=1)
    await stores.append(order, "6", "7", expected_version=5)
    third = await stores.look(order, snapshot_version=1)

    assert (first.snapshot, [data for _, _, _, data in first.events]) == (snapshot(3, '{"state":\n"three"}'), ["4"])
    assert (second.snapshot, list(second.events)) == (snapshot(5, "5"), [])
    assert (third.snapshot, [number for number, _, _, _ in third.events]) == (snapshot(5, "5"), [6, 7])


async def test_a_snapshot_that_cannot_be_read_is_left_out(stores: EventStores) -> None:
    """One of a newer version than the reader's, and any if the reader wants none: then all events are replayed."""
    order = stream()
    await stores.append(order, "1", "2", snapshot=snapshot(2, version=3))

    assert (await stores.look(order, snapshot_version=3)).snapshot == snapshot(2, version=3)
    assert (await stores.look(order, snapshot_version=4)).snapshot == snapshot(2, version=3)
    for history in (await stores.look(order, snapshot_version=2), await stores.look(order)):
        assert (history.snapshot, [data for _, _, _, data in history.events]) == (None, ["1", "2"])


async def test_an_event_is_stored_as_it_is(stores: EventStores) -> None:
    """Id, name, version, the text of its JSON, and where it comes from; in each way to read it."""
    order = stream("größe-日本-\U0001f600", name="Bestellung-注文")
    metadata = EventMetadata(
        source_id="quelle-\U0001f600",
        command="PlaceOrder",
        job_id="job-1",
        correlation_id="all of it",
        causation_id="the one before",
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )
    texts = ['{"b": 1,\n "a": 1e2, "a": 2}', '"ü\U0001f600\\u0000 \\ud800"', '"' + "x" * 100_000 + '"']
    new = [NewEvent(EventId.at(order, n), f"Getan-{n}", n, text.encode()) for n, text in enumerate(texts, start=1)]
    await stores.append(order, events=tuple(new), metadata=metadata)

    loaded = list(await stores.events.load(order))

    assert [NewEvent(e.id, e.name, e.version, e.data.encode()) for e in loaded] == new
    assert {e.metadata for e in loaded} == {metadata}
    assert {e.stream for e in loaded} == {order}
    assert list((await stores.look(order)).events) == [event.past for event in loaded]
    assert await stores.read_all() == loaded


async def test_what_is_not_known_about_an_event_is_none(stores: EventStores) -> None:
    """Metadata has a source id, and perhaps nothing else."""
    order = stream()
    await stores.append(order, "1", metadata=EventMetadata(source_id="test"))

    [event] = await stores.events.load(order)

    assert event.metadata == EventMetadata(source_id="test")


async def test_events_are_recorded_at_the_stores_time(stores: EventStores) -> None:
    """An aware instant in UTC, between before and after."""
    await stores.jobs.advance(timedelta(hours=1))
    order, before = stream(), await stores.jobs.now()
    await stores.append(order, "1")

    [event] = await stores.events.load(order)

    assert before <= event.recorded_at <= await stores.jobs.now()
    assert event.recorded_at.tzinfo is UTC


async def test_every_event_is_read_once(stores: EventStores) -> None:
    """Of all streams, each stream in order, whatever the size of a page."""
    streams = [stream() for _ in range(3)]
    for version in range(5):
        for each in streams:
            await stores.append(each, "1", "2", expected_version=2 * version)

    for limit in (1, 2, 7, 29, 30, 31, 1000):
        events = await stores.read_all(limit=limit)
        assert len(events) == 30
        assert len({event.position for event in events}) == 30
        for each in streams:
            assert [event for event in events if event.stream == each] == await stores.events.load(each)


async def test_reading_goes_on_at_its_cursor(stores: EventStores) -> None:
    """With what was appended since, and with nothing if nothing was."""
    order = stream()
    await stores.append(order, "1", "2", "3")

    first = await stores.events.read_all(limit=2)
    await stores.append(order, "4", expected_version=3)
    second = await stores.events.read_all(first.cursor, limit=10)
    events = [*first.events, *second.events]
    if not second.is_last:  # what came after the first page may be a page of its own
        third = await stores.events.read_all(second.cursor, limit=10)
        assert third.is_last
        second = third
        events.extend(third.events)
    nothing = await stores.events.read_all(second.cursor)
    await stores.append(order, "5", expected_version=4)

    assert not first.is_last
    assert [event.data for event in events] == ["1", "2", "3", "4"]
    assert (list(nothing.events), nothing.is_last) == ([], True)
    assert [event.data for event in await stores.read_all(cursor=nothing.cursor)] == ["5"]
    assert [event.data for event in await stores.read_all(cursor=second.cursor)] == ["5"]
    assert [event.data for event in await stores.read_all(cursor=first.cursor)] == ["3", "4", "5"]


async def test_an_empty_log_is_read_to_its_end(stores: EventStores) -> None:
    """Its only page is empty, and reading goes on from there."""
    page = await stores.events.read_all()
    await stores.append(stream(), "1")

    assert (list(page.events), page.is_last) == ([], True)
    assert len(await stores.read_all(cursor=page.cursor)) == 1


NO_CURSORS = ("?", "-1", "1.5", "null", "[]", "[[0]]", '[["a"]]', "[[5],3]", "[" * 100_000)


async def test_a_text_that_is_no_cursor_is_refused(stores: EventStores) -> None:
    """Also one that would be nearly right; the error carries it, and shows what fits a line."""
    for cursor in NO_CURSORS:
        with pytest.raises(InvalidCursorError) as refused:
            await stores.events.read_all(cursor)

        assert refused.value.cursor == cursor
        assert len(str(refused.value)) < 200


async def test_a_cursor_of_the_future_is_refused(stores: EventStores) -> None:
    """Of a store that has come further than this one: what it has seen the end of is not there yet."""
    order = stream()
    await stores.append(order, "1")
    page = await stores.events.read_all()
    ahead = page.cursor.replace(page.cursor.strip("[]").split(",")[0], str(2**40), 1)

    with pytest.raises(ForeignCursorError) as refused:
        await stores.events.read_all(ahead)

    assert refused.value.seen == 2**40
    assert refused.value.reached < 2**40


async def test_a_page_has_room_for_an_event(stores: EventStores) -> None:
    """A page of none would never come to an end."""
    with pytest.raises(ValueError, match="at least one"):
        await stores.events.read_all(limit=0)
