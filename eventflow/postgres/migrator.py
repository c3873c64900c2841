"""Creates and upgrades the tables; the only place that does."""

import logging
from importlib.resources import files

import msgspec

from eventflow.errors import SchemaVersionError
from eventflow.postgres.connection import Connection
from eventflow.postgres.statements import DEFAULT_SCHEMA, check_schema, load_sql, statement
from eventflow.postgres.transactions import roll_back
from eventflow.postgres.translation import DRIVER_ERRORS, translate

log = logging.getLogger("eventflow.postgres")


class Migration(msgspec.Struct, frozen=True):
    """One numbered file."""

    version: int
    name: str
    sql: str


def migrations(schema: str = DEFAULT_SCHEMA) -> list[Migration]:
    """All migrations, in order."""
    folder = files("eventflow.postgres").joinpath("migrations")
    names = sorted(entry.name.removesuffix(".sql") for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [Migration(int(name[:4]), name, load_sql("migrations", name, check_schema(schema))) for name in names]


def latest_version() -> int:
    """The version that this code needs."""
    return migrations()[-1].version


async def applied_version(connection: Connection, schema: str = DEFAULT_SCHEMA) -> int | None:
    """The newest migration that was applied; ``None``: there are no tables."""
    try:
        exists = await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", f"{schema}.migration")
        version: int | None = await connection.fetchval(statement("select_schema_version", schema)) if exists else None
    except DRIVER_ERRORS as exc:
        raise translate(exc, schema) from exc
    return version


async def check_version(connection: Connection, schema: str = DEFAULT_SCHEMA) -> None:
    """
    Make sure that tables and code fit.

    Raises:
        SchemaVersionError: they do not; it says what to run.
    """
    found, wanted = await applied_version(connection, schema), latest_version()
    if found != wanted:
        raise SchemaVersionError(schema, found, wanted)


async def migrate(connection: Connection, schema: str = DEFAULT_SCHEMA) -> list[Migration]:
    """
    Apply what is missing, in one transaction; returns what was applied.

    Two at the same time wait for each other. Safe to repeat. If it is cancelled, nothing stays locked; the connection
    may be closed for that.

    Raises:
        SchemaVersionError: the tables are newer than this code.
        DatabaseError: a statement was refused; nothing was changed.
    """
    scope = connection.transaction()
    try:
        await scope.start()
        applied = await _apply_missing(connection, schema)
        await scope.commit()
    except BaseException as exc:
        await roll_back(connection, scope)
        if isinstance(exc, DRIVER_ERRORS):
            raise translate(exc, schema) from exc
        raise
    for migration in applied:
        log.info("migration.applied", extra={"version": migration.version, "schema": schema})
    return applied


async def _apply_missing(connection: Connection, schema: str) -> list[Migration]:
    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"{schema}.migrate")
    found = await applied_version(connection, schema)
    if found is not None and found > latest_version():
        raise SchemaVersionError(schema, found, latest_version())
    missing = [migration for migration in migrations(schema) if migration.version > (found or 0)]
    for migration in missing:
        await connection.execute(migration.sql, timeout=600)
        await connection.execute(
            f"INSERT INTO {check_schema(schema)}.migration (version, name) VALUES ($1, $2)",  # noqa: S608 - a checked name
            migration.version,
            migration.name,
        )
    return missing


def migration_script(schema: str = DEFAULT_SCHEMA) -> str:
    """All migrations as one SQL text, for who applies them by other means."""
    parts = [
        f"{migration.sql.rstrip()}\n"
        f"INSERT INTO {check_schema(schema)}.migration (version, name) "
        f"VALUES ({migration.version}, '{migration.name}');\n"
        for migration in migrations(schema)
    ]
    return "BEGIN;\n" + "\n".join(parts) + "COMMIT;\n"
