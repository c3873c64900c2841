"""Clocks that are wrong: libfaketime shows a process, or a server, another wall clock than the machine's."""

from pathlib import Path

from eventflow.devdb import PostgresBinaries, find_postgres_binaries
from eventflow.devdb.accounts import server_account
from eventflow.devdb.binaries import binaries_for

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


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

    def binaries(self, directory: Path) -> PostgresBinaries:
        """Those of a server that goes by it: its program behind a script that sets what the server does not inherit."""
        found = binaries_for(server_account(), find_postgres_binaries())
        settings = " ".join(f"{name}={value}" for name, value in self.environment().items())
        directory.mkdir(mode=0o755)
        script = directory / "postgres"
        script.write_text(f'#!/bin/sh\n{settings} exec {found.program("postgres")} "$@"\n')
        script.chmod(0o755)
        (directory / "initdb").symlink_to(found.program("initdb"))
        return PostgresBinaries(directory, found.version)
