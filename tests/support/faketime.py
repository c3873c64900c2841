"""Clocks that are wrong: libfaketime shows a process, or a server, another wall clock than the machine's."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from eventflow.devdb import EmbeddedPostgres, PostgresBinaries, cached_template, find_postgres_binaries
from eventflow.devdb.accounts import server_account
from eventflow.devdb.binaries import binaries_for

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
needs_faketime = pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed (Debian: faketime)")

HOUR = 3600


def skewed(seconds: float) -> dict[str, str]:
    """The environment of a process whose wall clock is so many seconds ahead; the monotonic one stays right."""
    return {"LD_PRELOAD": str(LIBRARY), "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME": f"{seconds:+g}"}


class SettableClock:
    """A wall clock that can be set while processes go by it."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "clock"
        self.set(0)

    def set(self, seconds: float) -> None:
        """Show so many seconds more than the machine's clock, from now on."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+g}")
        new.chmod(0o644)
        new.replace(self._file)  # at once: nobody reads half a number

    def environment(self) -> dict[str, str]:
        """The environment of a process that goes by it."""
        uncached = {"FAKETIME_TIMESTAMP_FILE": str(self._file), "FAKETIME_NO_CACHE": "1"}
        return {"LD_PRELOAD": str(LIBRARY), "FAKETIME_DONT_FAKE_MONOTONIC": "1", **uncached}


@contextmanager
def postgres_with_clock() -> Generator[tuple[EmbeddedPostgres, SettableClock]]:
    """A server of one's own, and the clock it goes by."""
    # Not pytest's own temporary directory: its path can be too long for a socket.
    with TemporaryDirectory(prefix="eventflow-clock-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # as root, the server runs under another account
        clock = SettableClock(directory)
        binaries = _with_environment(clock.environment(), directory / "bin")
        root = directory / "postgres"
        settings = {"track_activity_query_size": "16384"}  # pg_stat_activity shows whole statements
        with EmbeddedPostgres(
            root, durable=False, settings=settings, template=cached_template(), binaries=binaries
        ) as server:
            yield server, clock


def _with_environment(environment: dict[str, str], directory: Path) -> PostgresBinaries:
    """The server's program behind a script that adds to its environment, which the server does not inherit from us."""
    found = binaries_for(server_account(), find_postgres_binaries())
    settings = " ".join(f"{name}={value}" for name, value in environment.items())
    directory.mkdir(mode=0o755)
    script = directory / "postgres"
    script.write_text(f'#!/bin/sh\n{settings} exec {found.program("postgres")} "$@"\n')
    script.chmod(0o755)
    return PostgresBinaries(directory, found.version)
