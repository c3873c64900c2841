"""What the integration tests share."""

from collections.abc import AsyncGenerator

import asyncpg
import pytest

from eventflow import WorkerSettings
from eventflow.postgres import Connection
from tests.support.event_stores import EventStores, event_stores
from tests.support.journal import Journal
from tests.support.postgres import Database
from tests.support.tallies import Desk, TallyId


@pytest.fixture
def journal() -> Journal:
    """What handlers did in this test."""
    return Journal()


@pytest.fixture
def only_when_woken(monkeypatch: pytest.MonkeyPatch) -> WorkerSettings:
    """A worker that would find a job by its own look only long after the test has failed; nobody else may have one."""
    monkeypatch.setattr("eventflow.application.app.LONGEST_TICK_SECONDS", 60.0)
    return WorkerSettings(tick_interval=60.0)


@pytest.fixture
async def admin(admin_dsn: str) -> AsyncGenerator[Connection]:
    """A superuser's connection to this test's database."""
    connection: Connection = await asyncpg.connect(admin_dsn, command_timeout=100)
    yield connection
    await connection.close()


@pytest.fixture
def desk() -> Desk:
    """The subscriber's."""
    return Desk()


@pytest.fixture
def tally() -> TallyId:
    """An aggregate."""
    return TallyId.new()


@pytest.fixture
async def stores(database: Database) -> AsyncGenerator[EventStores]:
    """An empty store on Postgres."""
    async with event_stores(database) as opened:
        yield opened
