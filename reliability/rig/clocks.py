"""Clocks that are wrong: libfaketime shows a process, or a server, another wall clock than the machine's."""

import time
from itertools import pairwise
from math import inf
from pathlib import Path

from eventflow.devdb import PostgresBinaries, find_postgres_binaries
from eventflow.devdb.accounts import server_account
from eventflow.devdb.binaries import binaries_for

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
DISORDER_SECONDS = 0.5
"""What is logged later may be stamped by so much earlier: others had the processor in between."""


def skewed(seconds: float) -> dict[str, str]:
    """The environment of a process whose wall clock is so many seconds ahead; the monotonic one stays right."""
    return {"LD_PRELOAD": str(LIBRARY), "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME": f"{seconds:+g}"}


class SettableClock:
    """A wall clock that can be set while processes go by it, and what it has shown when."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "clock"
        self._steps: list[tuple[float, float]] = []
        self.set(0.0)

    @property
    def ahead(self) -> float:
        """Seconds that it shows more than the machine's clock."""
        return self._steps[-1][1]

    @property
    def furthest_ahead(self) -> float:
        """The most it has been ahead."""
        return max(ahead for _, ahead in self._steps)

    def set(self, seconds: float) -> None:
        """Show so many seconds more than the machine's clock, from now on."""
        self._steps.append((time.time(), seconds))
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+g}")
        new.chmod(0o644)
        new.replace(self._file)  # at once: nobody reads half a number

    def shown_at(self, stamp: float, not_before: float) -> float:
        """
        When it has shown this; all in Unix time, by the machine's clock.

        A clock that was set back shows the same twice.

        Args:
            not_before: When something had been shown that was logged earlier.
        """
        found: list[tuple[float, float]] = []
        for (since, ahead), (until, _) in pairwise([*self._steps, (inf, 0.0)]):
            at = stamp - ahead
            found.append((max(since - at, at - until, 0.0), at))  # how far from when it was so far ahead
        nearest = min(found)[0]
        times = [at for distance, at in found if distance == nearest]
        return next((at for at in times if at >= not_before - DISORDER_SECONDS), times[-1])

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
