"""The Postgres server of a test run, and a fresh migrated database for every test."""

import asyncio
import itertools
import os
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import msgspec

from eventflow.postgres import Connection, migrate

T = TypeVar("T")

ROLES = ("owner", "worker", "producer", "viewer")
PASSWORD = "only-for-tests"  # for servers that ask; the embedded one trusts its socket


class Database(msgspec.Struct, frozen=True):
    """
    The addresses of one database, by who connects.

    Attributes:
        admin: A superuser, for looking behind the scenes.
        worker: What applications and workers use.
        producer: May only schedule.
        viewer: May only read.
        owner: A member of the role that owns the objects.
    """

    name: str
    admin: str
    worker: str
    producer: str
    viewer: str
    owner: str


class PostgresServer:
    """
    A running server on which tests make databases.

    Its methods block, and are for fixtures that are not coroutines; they use an event loop of their own.

    Args:
        address: Of any database of the server, as superuser.

    Attributes:
        libraries: Those that the server was started with.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._admin = self._run(asyncpg.connect(address))
        self.libraries: str = self._run(self._admin.fetchval("SHOW shared_preload_libraries"))
        self._numbers = itertools.count(1)
        self._template = self._make_template()

    def close(self) -> None:
        """Drop the template and disconnect."""
        self.drop(self._template)
        self._run(self._admin.close())
        self._runner.close()

    def create_empty(self) -> Database:
        """A database without tables."""
        name = self._new_name()
        self._run(self._admin.execute(f"CREATE DATABASE {name} TEMPLATE template0"))
        return self._database(name)

    def create_migrated(self) -> Database:
        """A database with eventflow's tables: a copy of one that was migrated once."""
        name = self._new_name()
        # Copies files instead of logging every page: 15 ms instead of 25.
        self._run(self._admin.execute(f"CREATE DATABASE {name} TEMPLATE {self._template} STRATEGY = FILE_COPY"))
        return self._database(name)

    def drop(self, name: str) -> None:
        """Drop a database, whoever is still connected."""
        self._run(self._admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))

    def _make_template(self) -> str:
        template = self._new_name()
        self._run(self._admin.execute(f"CREATE DATABASE {template} TEMPLATE template0"))
        self._run(_migrate(self._address(template)))
        for role in ROLES:
            self._run(_make_login_role(self._admin, role))
        return template

    def _new_name(self) -> str:
        return f"eventflow_test_{os.getpid()}_{next(self._numbers)}"

    def _database(self, name: str) -> Database:
        logins = {role: self._address(name, f"test_{role}") for role in ROLES}
        return Database(name=name, admin=self._address(name), **logins)

    def _address(self, database: str, user: str | None = None) -> str:
        parts = urlsplit(self.address)
        login, at, host = parts.netloc.rpartition("@")
        if user is not None:
            login, at = f"{user}:{PASSWORD}", "@"
        return urlunsplit(parts._replace(netloc=f"{login}{at}{host}", path=f"/{database}"))

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(coroutine)


async def _migrate(address: str) -> None:
    connection = await asyncpg.connect(address)
    try:
        await migrate(connection)
    finally:
        await connection.close()


async def _make_login_role(admin: Connection, role: str) -> None:
    with suppress(asyncpg.DuplicateObjectError):  # an earlier run on this server made it
        await admin.execute(f"CREATE ROLE test_{role} LOGIN")
    await admin.execute(f"ALTER ROLE test_{role} PASSWORD '{PASSWORD}'")
    await admin.execute(f"GRANT eventflow_{role} TO test_{role}")
