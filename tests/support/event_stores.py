"""Drives an event store from a contract test, whatever implements it, with the jobs that are committed with events."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from eventflow.eventstore import (
    Changes,
    EventId,
    EventMetadata,
    EventStore,
    History,
    InMemoryEventStore,
    NewEvent,
    Receipt,
    ReceiptKey,
    Snapshot,
    StoredEvent,
    StreamId,
)
from eventflow.ids import JobId, new_uuid
from eventflow.jobs import Commits, Ending, InMemoryCommits, InMemoryJobStore, NewJob, Outcome, Settlement
from eventflow.postgres import PostgresJobStore, Transactions, connector
from eventflow.postgres.commits import PostgresCommits
from eventflow.postgres.connection import Lanes, LaneStack
from eventflow.postgres.event_store import PostgresEventStore
from tests.support.job_stores import InMemoryDriver, PostgresDriver, StoreDriver
from tests.support.postgres import Database

SCHEMA = "eventflow"


class EventStores:
    """
    An event store and what is committed with it.

    Attributes:
        events: The event store.
        commits: Writes changes and jobs together.
        jobs: Drives the job store of the same transactions.
    """

    def __init__(self, events: EventStore, commits: Commits, jobs: StoreDriver) -> None:
        self.events = events
        self.commits = commits
        self.jobs = jobs

    async def append(self, stream: StreamId | None, *data: str, **given: Any) -> None:  # Any: the fields of Changes
        """Append events with this JSON, by default as the first of the stream."""
        await self.events.append(changes(stream, *data, **given))

    async def commit_in_job(self, change: Changes, jobs: Sequence[NewJob] = ()) -> JobId:
        """Write changes as the only job that is ready, and end it."""
        worker = await self.jobs.open_worker()
        claim = await self.jobs.claim_one(worker)
        settlement = Settlement(claim=claim, outcome=Outcome.SUCCEEDED, retention_days=1)
        await self.commits.commit(change, jobs, ends=Ending(worker, settlement))
        return claim.id

    async def load(self, stream: StreamId) -> list[str]:
        """The JSON of all events of a stream."""
        return [event.data for event in await self.events.load(stream)]

    async def look(self, stream: StreamId | None, source_id: str = "none", **given: Any) -> History:
        """What a command with this source id would find."""
        return await self.events.look(stream, receipt_key(stream, source_id), **given)

    async def read_all(self, *, limit: int = 1000, cursor: str = "") -> list[StoredEvent]:
        """All events from a cursor on, page after page."""
        found: list[StoredEvent] = []
        while True:
            page = await self.events.read_all(cursor, limit=limit)
            assert len(page.events) <= limit
            assert page.events or page.is_last
            found.extend(page.events)
            cursor = page.cursor
            if page.is_last:
                return found


@asynccontextmanager
async def event_stores(database: Database | None) -> AsyncGenerator[EventStores]:
    """Stores on a database; ``None``: in memory."""
    if database is None:
        jobs = InMemoryDriver()
        assert isinstance(jobs.store, InMemoryJobStore)
        events = InMemoryEventStore(jobs._clock)
        yield EventStores(events, InMemoryCommits(jobs.store, events), jobs)
        return
    driver = PostgresDriver(database.worker, database.admin)
    connect = connector(database.worker, name="events")
    lanes = LaneStack(connect, SCHEMA)
    loading, reading_all, committing = lanes.share(2), lanes.share(1), lanes.share(4)
    assert isinstance(driver.store, PostgresJobStore)
    commits = postgres_commits(database, driver.store, committing)
    try:
        yield EventStores(PostgresEventStore(loading, reading_all, commits, SCHEMA), commits, driver)
    finally:
        for lane in lanes:
            await lane.close()
        await driver.close()


def postgres_commits(database: Database, jobs: PostgresJobStore, lanes: Lanes) -> PostgresCommits:
    """What writes to a database, also in others' transactions."""
    pool = asyncpg.create_pool(database.worker, min_size=0)
    transactions = Transactions(pool, SCHEMA, committed=_nobody)
    return PostgresCommits(lanes, jobs.queues, SCHEMA, transactions=transactions, committed=_nobody)


def stream(aggregate_id: str | None = None, *, name: str = "Order") -> StreamId:
    """A stream, by default one that nobody else has."""
    return StreamId(name, aggregate_id or f"order-{new_uuid()}")


def changes(to: StreamId | None, *data: str, expected_version: int = 0, **given: Any) -> Changes:
    """Events with this JSON, and whatever else."""
    events = tuple(
        NewEvent(EventId.at(to, number), "Noted", 1, text.encode())
        for number, text in enumerate(data, start=expected_version + 1)
        if to is not None
    )
    fields: dict[str, Any] = {"metadata": EventMetadata(source_id="test"), "stream": to, "events": events} | given
    return Changes(expected_version=expected_version, **fields)


def receipt_key(of: StreamId | None, source_id: str) -> ReceiptKey:
    """Of an operation on a stream, or on none."""
    return (
        ReceiptKey("Tidy", "", source_id) if of is None else ReceiptKey(of.aggregate_name, of.aggregate_id, source_id)
    )


def receipt(of: StreamId | None, source_id: str, result: str = "null") -> Receipt:
    """Of an operation on a stream, or on none, that returned this JSON."""
    return Receipt(receipt_key(of, source_id), result.encode())


def snapshot(stream_version: int, data: str = "{}", *, version: int = 1) -> Snapshot:
    """Of the state after so many events."""
    return Snapshot(stream_version, version, data.encode())


def _nobody(_: int) -> None:
    """Nobody waits for jobs here."""
