"""What acceptance tests of the shop share."""

from collections.abc import AsyncGenerator

import asyncpg
import pytest

from eventflow.postgres import Connection
from tests.acceptance.shop import CREATE_EFFECTS


@pytest.fixture
async def admin(dsn: str, admin_dsn: str, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Connection]:
    """A superuser's connection to the database of the shop, which its processes find in their environment."""
    monkeypatch.setenv("EVENTFLOW_DSN", dsn)
    connection = await asyncpg.connect(admin_dsn)
    await connection.execute(CREATE_EFFECTS)
    yield connection
    await connection.close()
