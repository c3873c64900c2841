"""
A real Postgres for tests: one server for the run, a database for each test.

By default the embedded server; ``EVENTFLOW_TEST_POSTGRES=<address of a superuser>`` names another, and
``EVENTFLOW_TEST_POSTGRES=testcontainers`` starts one of the image ``EVENTFLOW_TEST_IMAGE``.
Applications connect with least privilege: ``dsn`` is a worker's, and only ``admin_dsn`` is a superuser's.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from eventflow.devdb import EmbeddedPostgres, cached_template
from reliability.rig.transitions import Transitions
from tests.support.containers import postgres_container
from tests.support.postgres import Database, PostgresServer

SERVER_SETTINGS = {"shared_preload_libraries": "pg_stat_statements", "max_connections": "200"}


@pytest.fixture(scope="session")
def postgres() -> Generator[PostgresServer]:
    """The server of this run."""
    with _address() as address:
        server = PostgresServer(address)
        try:
            yield server
        finally:
            server.close()


@contextmanager
def _address() -> Generator[str]:
    given = os.environ.get("EVENTFLOW_TEST_POSTGRES")
    if given == "testcontainers":
        with postgres_container({**SERVER_SETTINGS, "fsync": "off"}) as container:
            # It speaks no TLS. A cancelled attempt to agree on that leaves asyncpg with a future that nobody awaits.
            yield f"{container.get_connection_url()}?sslmode=disable"
        return
    if given:
        yield given
        return
    # Not pytest's own temporary directory: its path can be too long for a socket.
    with TemporaryDirectory(prefix="eventflow-tests-") as directory:
        Path(directory).chmod(0o755)  # as root, the server runs under another account
        root = Path(directory) / "postgres"
        settings = SERVER_SETTINGS
        with EmbeddedPostgres(root, durable=False, settings=settings, template=cached_template()) as embedded:
            yield embedded.dsn()


@pytest.fixture
def database(postgres: PostgresServer) -> Generator[Database]:
    """A migrated database for this test alone."""
    made = postgres.create_migrated()
    yield made
    postgres.drop(made.name)


@pytest.fixture
def empty_database(postgres: PostgresServer) -> Generator[Database]:
    """A database without tables for this test alone."""
    made = postgres.create_empty()
    yield made
    postgres.drop(made.name)


@pytest.fixture
def dsn(database: Database) -> str:
    """What applications and workers connect with."""
    return database.worker


@pytest.fixture
def admin_dsn(database: Database) -> str:
    """A superuser's address of the same database, for looking behind the scenes."""
    return database.admin


@pytest.fixture
def producer_dsn(database: Database) -> str:
    """For who may only schedule."""
    return database.producer


@pytest.fixture
def viewer_dsn(database: Database) -> str:
    """For who may only read."""
    return database.viewer


@pytest.fixture
async def transitions(database: Database) -> Transitions:
    """Watches every state change of every job in this test's database."""
    watched = Transitions(database.admin)
    await watched.install()
    return watched
