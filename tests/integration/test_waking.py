"""Inserts that wake workers by themselves, on a real notification queue."""

from collections.abc import AsyncGenerator, Generator
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import pytest

from eventflow import SystemClock
from eventflow.devdb import EmbeddedPostgres, cached_template
from eventflow.devdb.binaries import find_postgres_binaries
from eventflow.postgres import Connection, PostgresJobStore, connector, migrate
from eventflow.postgres.connection import Lane
from eventflow.postgres.notifier import Notifier
from eventflow.postgres.wakes import Wakes
from tests.support.job_stores import after, new_job
from tests.support.journal import count_jobs
from tests.support.waiting import until

PAGES = 64
"""The smallest notification queue, in pages of 8 kB."""
FILL = "SELECT pg_notify('anything', repeat('x', 7000) || n) FROM generate_series(1, $1::integer) AS n"


class Ear:
    """Hears the notifications of a database."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def hear(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        """Take one."""
        self.heard.append(str(payload))


@pytest.fixture
async def ear(dsn: str) -> AsyncGenerator[Ear]:
    """Listens."""
    ear = Ear()
    connection: Connection = await asyncpg.connect(dsn)
    await connection.add_listener("eventflow", ear.hear)
    yield ear
    await connection.close()


def store_at_rest(dsn: str) -> PostgresJobStore:
    """A store whose notifier does not run: what is heard was sent by an insert."""
    connect = connector(dsn, name="test")
    return PostgresJobStore(
        connect, "eventflow", wakes=Wakes(Notifier(Lane(connect, "eventflow"), "eventflow", SystemClock()))
    )


async def test_a_lone_insert_wakes_by_itself(dsn: str, ear: Ear) -> None:
    """Nothing else sends anything, and the job is there when the notification comes."""
    store = store_at_rest(dsn)
    job = new_job()
    await store.insert([job])

    await until(lambda: ear.heard == [""])
    assert await store.get(job.id) is not None
    await store.close()


async def test_a_producer_wakes_too(producer_dsn: str, ear: Ear) -> None:
    """With a producer's rights, by a lone insert and by the notifier."""
    lane = Lane(connector(producer_dsn, name="notify"), "eventflow")
    notifier = Notifier(lane, "eventflow", SystemClock())
    store = PostgresJobStore(connector(producer_dsn, name="test"), "eventflow", wakes=Wakes(notifier))
    await store.insert([new_job()])
    await until(lambda: ear.heard == [""])
    notifier.mark()
    await notifier.notify_step()

    await until(lambda: ear.heard == ["", ""])
    await store.close()
    await lane.close()


async def test_a_distant_job_wakes_nobody(dsn: str, ear: Ear) -> None:
    """Workers find it by themselves: of two inserts only that of a ready one is heard."""
    store = store_at_rest(dsn)
    await store.insert([new_job(due=after(timedelta(seconds=10)))])
    await store.insert([new_job(), new_job(due=after(timedelta(seconds=10)))])

    await until(lambda: ear.heard == [""])
    await store.close()


async def test_inserts_right_after_another_share_their_notification(dsn: str, ear: Ear) -> None:
    """The first one sends its own; those that come while others may still be waking leave it to the notifier."""
    clock = SystemClock()
    lane = Lane(connector(dsn, name="notify"), "eventflow")
    notifier = Notifier(lane, "eventflow", clock)
    notifier.tried(is_done=True, wait_us=10**9)
    store = PostgresJobStore(connector(dsn, name="test"), "eventflow", wakes=Wakes(notifier))
    await store.insert([new_job()])
    await lane.fetch("SELECT pg_notify('eventflow', 'last')")

    await until(lambda: ear.heard == ["last"])
    await store.close()
    await lane.close()


WAKE = "SELECT is_done, wait_us, now_us FROM eventflow.wake_workers($1, $2)"
CROWD = """
INSERT INTO eventflow.worker (id, host, pid, version, concurrency)
SELECT gen_random_uuid(), 'host', 1, '1.0', 1 FROM generate_series(1, 1500)
"""
"""So many workers are woken once a second."""


@pytest.fixture
async def session(dsn: str, admin: Connection) -> AsyncGenerator[Connection]:
    """Of a process that notifies, where a crowd listens."""
    await admin.execute(CROWD)
    connection: Connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


async def test_all_who_notify_share_what_the_database_can_wake(session: Connection, ear: Ear) -> None:
    """Right after one notification another is not sent; who wants it is told to wait for the rest of the second."""
    [first] = await session.fetch(WAKE, "", None)
    [again] = await session.fetch(WAKE, "", None)
    [signal] = await session.fetch(WAKE, "signal", None)
    await until(lambda: ear.heard == ["", "signal"])

    assert (first["is_done"], first["wait_us"]) == (True, 1_000_000)
    assert not again["is_done"]
    assert again["wait_us"] == 1_000_000 - (again["now_us"] - first["now_us"])
    assert signal["is_done"]


async def test_another_process_may_have_notified_already(session: Connection) -> None:
    """It did so after the jobs were committed, so it need not be done again; before that, it does not count."""
    [first] = await session.fetch(WAKE, "", None)
    [earlier] = await session.fetch(WAKE, "", first["now_us"] - 1)
    [later] = await session.fetch(WAKE, "", first["now_us"])

    assert earlier["is_done"]
    assert not later["is_done"]


async def test_a_clock_that_was_set_back_silences_nobody(session: Connection, admin: Connection, ear: Ear) -> None:
    """The last notification seems to lie an hour ahead: the next is sent, and its time holds from then on."""
    ahead_us = await admin.fetchval("SELECT eventflow.microseconds(clock_timestamp() + interval '1 hour')")
    await admin.execute("SELECT setval('eventflow.notified_us', $1)", ahead_us)
    [signal] = await session.fetch(WAKE, "signal", None)
    [row] = await session.fetch(WAKE, "", None)
    await until(lambda: ear.heard == ["signal", ""])

    assert signal["wait_us"] == 1_000_000
    assert (row["is_done"], row["wait_us"]) == (True, 1_000_000)
    assert await admin.fetchval("SELECT last_value FROM eventflow.notified_us") == row["now_us"]


async def test_what_could_not_be_sent_at_once_is_sent_later(session: Connection, dsn: str, ear: Ear) -> None:
    """An insert comes right after a notification that was not for it: the notifier sends the next when it may."""
    lane = Lane(connector(dsn, name="notify"), "eventflow")
    notifier = Notifier(lane, "eventflow", SystemClock())
    store = PostgresJobStore(connector(dsn, name="test"), "eventflow", wakes=Wakes(notifier))
    await session.fetch(WAKE, "", None)
    await store.insert([new_job()])
    await notifier.notify_step()

    await until(lambda: ear.heard == ["", ""])
    await store.close()
    await lane.close()


@pytest.fixture
def crowded_server() -> Generator[EmbeddedPostgres]:
    """A server of this test's own, with the smallest notification queue."""
    if find_postgres_binaries().major < 17:
        pytest.skip("before Postgres 17 the notification queue has 8 GB")
    with TemporaryDirectory(prefix="eventflow-waking-") as directory:
        Path(directory).chmod(0o755)
        root, settings = Path(directory) / "postgres", {"max_notify_queue_pages": str(PAGES)}
        with EmbeddedPostgres(root, durable=False, template=cached_template(), settings=settings) as embedded:
            yield embedded


async def test_jobs_are_committed_though_nobody_can_be_notified(crowded_server: EmbeddedPostgres) -> None:
    """A listening session stands still until the queue is full: the jobs are there, and their caller is told so."""
    dsn = crowded_server.dsn()
    lagging: Connection = await asyncpg.connect(dsn)
    await migrate(lagging)
    await lagging.execute("LISTEN anything")
    await lagging.execute("BEGIN")
    filling: Connection = await asyncpg.connect(dsn)
    with pytest.raises(asyncpg.ProgramLimitExceededError, match="too many notifications"):
        await filling.execute(FILL, 2 * PAGES)
    with pytest.raises(asyncpg.ProgramLimitExceededError, match="too many notifications"):
        await filling.execute("SELECT pg_notify('eventflow', '')")

    store = store_at_rest(dsn)
    await store.insert([new_job()])

    assert await count_jobs(dsn) == 1
    await store.close()
    await filling.close()
    await lagging.close()
