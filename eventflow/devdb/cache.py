"""What is worth making once per machine: copied binaries and template clusters."""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from eventflow.devdb.errors import DatabaseAccessError


def cache_directory() -> Path:
    """``/var/cache/eventflow`` for root, else ``$XDG_CACHE_HOME/eventflow``, by default in ``~/.cache``."""
    if os.geteuid() == 0:
        return Path("/var/cache/eventflow")  # not in /root, where the server's account cannot go
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "eventflow"


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """
    The cache entry *name*, a directory; built if it is missing.

    An entry is complete once it exists: *build* fills a path of its own, which is then renamed. Of several
    processes that build the same entry at once, the first to finish wins and the others use its result.

    Raises:
        DatabaseAccessError: There is no cache, and it cannot be made.
    """
    directory = cache_directory()
    entry = directory / name
    if entry.exists():
        return entry
    if not directory.exists():
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise DatabaseAccessError(f"cannot make {directory}: {exc}; set XDG_CACHE_HOME") from exc
        directory.chmod(0o755)  # whatever the umask: the server's account reads binaries here
    with TemporaryDirectory(prefix="building-", dir=directory) as scratch:
        Path(scratch).chmod(0o755)
        built = Path(scratch) / name
        build(built)
        try:
            built.rename(entry)
        except OSError:
            if not entry.exists():
                raise
    return entry
