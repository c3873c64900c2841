"""The implementations of the ports under contract."""

from collections.abc import AsyncGenerator

import pytest

from tests.support.event_stores import EventStores, event_stores
from tests.support.job_stores import InMemoryDriver, PostgresDriver, StoreDriver
from tests.support.postgres import Database


@pytest.fixture(params=["memory", "postgres"])
def store_database(request: pytest.FixtureRequest) -> Database | None:
    """The database of the store under test, if it has one."""
    return None if request.param == "memory" else request.getfixturevalue("database")


@pytest.fixture
async def driver(store_database: Database | None) -> AsyncGenerator[StoreDriver]:
    """A driver of each job store, which is empty."""
    if store_database is None:
        yield InMemoryDriver()
        return
    postgres = PostgresDriver(store_database.worker, store_database.admin)
    yield postgres
    await postgres.close()


@pytest.fixture
async def stores(store_database: Database | None) -> AsyncGenerator[EventStores]:
    """Each event store, which is empty."""
    async with event_stores(store_database) as opened:
        yield opened
