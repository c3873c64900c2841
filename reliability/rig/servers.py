"""The database servers of a schedule: a primary, and what some schedules need besides."""

import os
import subprocess
from collections.abc import Collection, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import asyncpg

from eventflow.devdb import DevDatabaseError, EmbeddedPostgres, cached_template, find_postgres_binaries
from reliability.faults import Fault
from reliability.rig.clocks import SettableClock

APP = "reliability"
"""The role of all processes."""
SETTINGS = {"max_connections": "60", "max_wal_size": "64MB", "wal_retrieve_retry_interval": "100ms"}
SMALLEST_QUEUE = {"max_notify_queue_pages": "64"}
"""Of notifications; since Postgres 17."""
DISK_MEGABYTES = 256
NOBODY_NEEDS = 4096
"""Bytes of a full disk that stay free."""


class Disk:
    """
    A small one of its own, in memory.

    Attributes:
        path: Where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    @classmethod
    @contextmanager
    def mounted(cls, path: Path) -> "Generator[Disk]":
        """Only root can."""
        path.mkdir()
        options = f"size={DISK_MEGABYTES}m,mode=755"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "eventflow", path], check=True)
        try:
            yield cls(path)
        finally:
            subprocess.run(["umount", "--lazy", path], check=True)

    def fill(self) -> None:
        """Leave no room."""
        found = os.statvfs(self.path)
        with self._filler.open("wb") as file, suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - NOBODY_NEEDS)

    def free(self) -> None:
        """There is room again."""
        self._filler.unlink(missing_ok=True)


class Servers:
    """
    The primary, which may die and be replaced.

    Attributes:
        primary: To be used.
        standby: Takes part in every commit; ``None``: there is none, or it is the primary now.
        clock: What they go by, if it can be set.
        disk: Where the primary is, if it can be filled.
    """

    def __init__(self, directory: Path, clock: SettableClock | None, disk: Disk | None) -> None:
        self._directory = directory
        self._settings = SETTINGS | (SMALLEST_QUEUE if find_postgres_binaries().major >= 17 else {})
        self._binaries = None if clock is None else clock.binaries(directory / "bin")
        self.clock = clock
        self.disk = disk
        root = (directory if disk is None else disk.path) / "postgres"
        self.primary = EmbeddedPostgres(
            root, settings=self._settings, template=cached_template(), binaries=self._binaries
        )
        self.standby: EmbeddedPostgres | None = None

    @classmethod
    @contextmanager
    def running(cls, directory: Path, faults: Collection[Fault]) -> "Generator[Servers]":
        """What these faults need; must be called in the main thread, whose end is theirs."""
        clock = SettableClock(directory) if Fault.SET_CLOCK in faults else None
        if Fault.FILL_DISK in faults:
            with Disk.mounted(directory / "disk") as disk, cls(directory, clock, disk)._running() as servers:
                yield servers
        else:
            with cls(directory, clock, None)._running() as servers:
                yield servers

    @contextmanager
    def _running(self) -> "Generator[Servers]":
        self.primary.start()
        try:
            yield self
        finally:
            for server in (self.primary, self.standby):
                if server is not None:
                    server.stop("immediate")

    @property
    def dsn(self) -> str:
        """The primary's address, for a superuser, whether it runs or not."""
        return f"postgresql://postgres@/postgres?host={self.primary.data_directory}"

    async def replicate(self) -> None:
        """From now on nothing is committed without a standby, which has what there is."""
        self.primary.stop()
        self.primary.root.chmod(0o755)  # the standby's account must get to its socket
        data = self.primary.data_directory
        self.standby = EmbeddedPostgres(
            self._directory / "standby",
            settings={**self._settings, "primary_conninfo": f"host={data} user=postgres"},
            template=data,
            binaries=self._binaries,
        )
        signal = data / "standby.signal"
        signal.touch()
        self.standby.start()
        signal.unlink()
        self.primary.start()
        await self._execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        await self._execute("SELECT pg_reload_conf()")

    def start(self) -> None:
        """Start the primary, unless it runs."""
        with suppress(DevDatabaseError):  # its disk may be full
            self.primary.start()

    def crash(self) -> None:
        """End the primary without a word."""
        self.primary.stop("immediate")

    async def promote(self) -> None:
        """The primary dies, and the standby takes its place, which has all that anybody may have seen."""
        if self.standby is not None:
            await self._execute("SELECT pg_logical_emit_message(true, 'reliability', '')")  # waits for the standby
            self.crash()
            self.primary, self.standby = self.standby, None
            await self._execute("SELECT pg_promote()")

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.dsn)
        try:
            await connection.execute(statement)
        finally:
            connection.terminate()
