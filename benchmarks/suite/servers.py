"""What the contestants stand on: one Postgres with durable settings, and Redis for orientation."""

import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import asyncpg

from benchmarks.suite.environments import MissingError
from eventflow.devdb import EmbeddedPostgres
from eventflow.postgres import Connection

SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "4GB",
    "max_connections": "300",
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.max": "10000",
}
"""Room for what is measured; fsync and synchronous_commit are on, as they are by default."""


class Postgres:
    """A server, and a fresh database for each cell."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._server = server
        self._made = 0

    async def new_database(self) -> str:
        """Make one; returns its address."""
        self._made += 1
        name = f"cell_{self._made}"
        admin = await self.connect("postgres")
        await admin.execute(f"CREATE DATABASE {name}")
        await admin.close()
        inside = await self.connect(name)
        await inside.execute("CREATE EXTENSION pg_stat_statements")
        await inside.close()
        return self._server.dsn(name)

    async def drop_database(self) -> None:
        """Drop the last, whoever is connected to it, and leave nothing of it to be written later."""
        admin = await self.connect("postgres")
        await admin.execute(f"DROP DATABASE IF EXISTS cell_{self._made} WITH (FORCE)")
        await admin.execute("CHECKPOINT")
        await admin.close()

    async def connect(self, database: str) -> Connection:
        """A superuser's connection."""
        connection: Connection = await asyncpg.connect(self._server.dsn(database))
        return connection


@contextmanager
def postgres() -> Generator[Postgres]:
    """Start the server."""
    with (
        tempfile.TemporaryDirectory(prefix="eventflow-bench-") as directory,
        EmbeddedPostgres(Path(directory) / "postgres", settings=SETTINGS) as server,
    ):
        yield Postgres(server)


@contextmanager
def redis() -> Generator[str]:
    """
    Start a Redis that keeps nothing; returns its address.

    Raises:
        MissingError: it is not installed.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise MissingError("redis-server is not installed")
    with tempfile.TemporaryDirectory(prefix="eventflow-bench-") as directory:
        socket = Path(directory) / "redis.sock"
        options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"]
        process = subprocess.Popen([program, *options], cwd=directory, stdout=subprocess.DEVNULL)
        try:
            yield f"unix://{socket}"
        finally:
            process.terminate()
            process.wait()
