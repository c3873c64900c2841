"""The server's queue of notifications is full, since somebody listens and reads nothing."""

from collections.abc import Generator
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import pytest

from eventflow.devdb import EmbeddedPostgres, cached_template, find_postgres_binaries
from eventflow.postgres import Connection, migrate
from tests.support.journal import Journal, Note, ended, flow_of, query
from tests.support.waiting import eventually

FLOOD = "SELECT pg_notify('others', repeat(number::text, 3000)) FROM generate_series(1, 20) AS number"
LISTENING = "SELECT count(*) FROM eventflow.worker WHERE session_key IS NOT NULL"

pytestmark = pytest.mark.skipif(
    find_postgres_binaries().major < 17, reason="before Postgres 17 the queue holds 8 GB, whatever is set"
)


async def fill(connection: Connection) -> None:
    """Notify until the server refuses."""
    while True:
        await connection.execute(FLOOD)


@pytest.fixture
def small_queue() -> Generator[EmbeddedPostgres]:
    """A server of this test's own that keeps half a megabyte of notifications."""
    with TemporaryDirectory(prefix="eventflow-queue-") as directory:
        Path(directory).chmod(0o755)
        settings = {"max_notify_queue_pages": "64"}
        root = Path(directory) / "postgres"
        with EmbeddedPostgres(root, durable=False, template=cached_template(), settings=settings) as server:
            yield server


async def test_full_queue_delays_jobs_and_is_emptied_once_who_held_it_has_left(small_queue: EmbeddedPostgres) -> None:
    """Nothing in Postgres makes room by itself then: without listeners every NOTIFY would fail for ever."""
    dsn, journal = small_queue.dsn(), Journal()
    admin: Connection = await asyncpg.connect(dsn)
    await migrate(admin)
    deaf: Connection = await asyncpg.connect(dsn)
    await deaf.execute("LISTEN others")
    await deaf.execute("BEGIN; SELECT 1")
    with pytest.raises(asyncpg.ProgramLimitExceededError):
        await fill(admin)

    async with flow_of(journal).open(dsn) as app, app.worker():
        while_full = await ended(app, await app.jobs.schedule(Note(label="while it is full")))
        assert (await query(dsn, LISTENING))[0]["count"] == 0
        await deaf.close()
        await eventually(lambda: admin.fetchval(LISTENING))
        afterwards = await ended(app, await app.jobs.schedule(Note(label="afterwards")))

    await admin.close()
    assert [while_full.attempt, afterwards.attempt] == [1, 1]
