"""``eventflow migrate`` and ``eventflow dev``: the database itself."""

import asyncio
import os
import shlex
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from eventflow.cli.address import ADDRESS
from eventflow.cli.exits import ExitCode
from eventflow.cli.terminal import Terminal
from eventflow.devdb import DevDatabaseError, EmbeddedPostgres
from eventflow.errors import SchemaVersionError
from eventflow.postgres import Lane, applied_version, connector, latest_version, migrate, migrations

_LOOK_SECONDS = 0.5


async def apply_migrations(dsn: str, schema: str) -> list[str]:
    """Create or upgrade the tables; returns the names of the migrations that were missing."""
    lane = Lane(connector(dsn, name="migrate"), schema)
    try:
        async with lane.connection() as connection:
            return [migration.name for migration in await migrate(connection, schema)]
    finally:
        await lane.close()


async def missing_migrations(dsn: str, schema: str) -> list[str]:
    """
    The names of the migrations to apply; changes nothing.

    Raises:
        SchemaVersionError: the tables are newer than this code.
    """
    lane = Lane(connector(dsn, name="migrate"), schema)
    try:
        async with lane.connection() as connection:
            found = await applied_version(connection, schema)
    finally:
        await lane.close()
    if found is not None and found > latest_version():
        raise SchemaVersionError(schema, found, latest_version())
    return [migration.name for migration in migrations(schema) if migration.version > (found or 0)]


def migrate_tables(dsn: str, schema: str, terminal: Terminal) -> ExitCode:
    """Apply what is missing and name it."""
    applied = asyncio.run(apply_migrations(dsn, schema))
    for name in applied:
        terminal.result(f"applied {name}")
    if not applied:
        terminal.result(f"nothing to do: schema {schema!r} is at migration {latest_version()}")
    return ExitCode.DONE


def check_migrations(dsn: str, schema: str, terminal: Terminal) -> ExitCode:
    """Name what is missing, and say by the exit code whether anything is."""
    missing = asyncio.run(missing_migrations(dsn, schema))
    for name in missing:
        terminal.result(f"missing {name}")
    if missing:
        return ExitCode.MIGRATIONS_MISSING
    terminal.result(f"schema {schema!r} is at migration {latest_version()}")
    return ExitCode.DONE


def serve_development(data: Path, *, tcp: bool, schema: str, terminal: Terminal) -> ExitCode:
    """
    Run the embedded Postgres until a signal comes; the second one does not wait for it to stop.

    Raises:
        DevDatabaseError: it cannot be started, or stopped by itself.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    with EmbeddedPostgres(data / "postgres", tcp=tcp) as database:
        dsn = database.dsn()
        applied = asyncio.run(apply_migrations(dsn, schema))
        for name in applied:
            terminal.note(f"applied {name}")
        terminal.result(f"export {ADDRESS}={shlex.quote(dsn)}")
        owner = "another process runs it" if database.attached else "stop it with Ctrl-C"
        terminal.note(f"Postgres serves {database.root}; {owner}.")
        never = threading.Event()
        while database.running:
            never.wait(_LOOK_SECONDS)  # a server that dies tells nobody
        raise DevDatabaseError(f"the server has stopped; see {database.log_path}")


def _leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - what a signal handler is given
    """Leave the block around the server, which stops it; next time, at once: it ends with us, a little later."""
    for either in (signal.SIGTERM, signal.SIGINT):
        signal.signal(either, lambda again, _: os._exit(128 + again))
    sys.exit(ExitCode.DONE)
