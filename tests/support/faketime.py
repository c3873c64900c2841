"""Servers whose clock tests set."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from eventflow.devdb import EmbeddedPostgres, cached_template
from reliability.rig.clocks import LIBRARY, SettableClock

needs_faketime = pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed (Debian: faketime)")
HOUR = 3600


@contextmanager
def postgres_with_clock() -> Generator[tuple[EmbeddedPostgres, SettableClock]]:
    """A server of one's own, and the clock it goes by."""
    # Not pytest's own temporary directory: its path can be too long for a socket.
    with TemporaryDirectory(prefix="eventflow-clock-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # as root, the server runs under another account
        clock = SettableClock(directory)
        settings = {"track_activity_query_size": "16384"}  # pg_stat_activity shows whole statements
        with EmbeddedPostgres(
            directory / "postgres",
            durable=False,
            settings=settings,
            template=cached_template(),
            binaries=clock.binaries(directory / "bin"),
        ) as server:
            yield server, clock
