"""The operating system account that Postgres, which refuses to run as root, runs as."""

import os
import pwd
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EACCES
from pathlib import Path

from eventflow.devdb.errors import DatabaseAccessError, PostgresFailedError

# Nothing else is inherited: PG* variables, locales and preloaded libraries of the caller change a server.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


def server_environment() -> dict[str, str]:
    """The environment of every Postgres program: locale C, UTC, and how to find libraries."""
    return {"LC_ALL": "C", "TZ": "UTC"} | {k: os.environ[k] for k in _ENVIRONMENT if k in os.environ}


@dataclass(frozen=True, slots=True)
class Account:
    """An account programs are started as; without a uid, the one of this process."""

    uid: int | None = None
    gid: int | None = None

    @property
    def extra_groups(self) -> list[int] | None:
        """None of root's supplementary groups come along."""
        return None if self.uid is None else []

    def take(self, path: Path) -> None:
        """Make the account the owner of *path*, and of nothing around it."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)

    @contextmanager
    def path_to(self, directory: Path) -> Generator[tuple[str, tuple[int, ...]]]:
        """
        A path to *directory* for a child of this account, and the descriptors the child inherits for it.

        Another account may not get past the directory's parents (a checkout in /root), and their modes are
        not ours to change. /proc leads from an open descriptor to the directory itself.
        """
        if self.uid is None or sys.platform != "linux":
            yield str(directory), ()
            return
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            yield f"/proc/self/fd/{descriptor}", (descriptor,)
        finally:
            os.close(descriptor)

    def can_execute(self, program: str) -> bool:
        """Whether the account gets as far as executing *program*."""
        try:
            completed = subprocess.run(
                [program, "--version"],
                user=self.uid, group=self.gid, extra_groups=self.extra_groups,
                cwd="/", env=server_environment(), capture_output=True, check=False,
            )  # fmt: skip
        except OSError as exc:
            if exc.errno == EACCES:
                return False
            raise DatabaseAccessError(f"cannot run {program} as uid {self.uid}: {exc}") from exc
        return completed.returncode == 0  # else a library is out of reach

    def run(self, command: Sequence[str], *, data: Path, stdin: str = "") -> None:
        """
        Run a Postgres program on a data directory to its end.

        Raises:
            PostgresFailedError: It exits with an error.
        """
        with self.path_to(data) as (path, descriptors):
            environment: Mapping[str, str] = server_environment() | {"PGDATA": path}
            completed = subprocess.run(
                command, input=stdin, text=True, errors="replace", capture_output=True, check=False,
                user=self.uid, group=self.gid, extra_groups=self.extra_groups,
                cwd="/", env=environment, pass_fds=descriptors, umask=0o077,
            )  # fmt: skip
        if completed.returncode:
            raise PostgresFailedError(command[0], (completed.stdout + completed.stderr).strip())


def server_account(data: Path | None = None) -> Account:
    """
    Who the server of *data* runs as, or of new data.

    An ordinary user's server is that user's. Root hands over to the owner of existing data, else to
    ``postgres``, else to ``nobody``; no account is ever created.

    Raises:
        DatabaseAccessError: This is root, and the system has neither account.
    """
    if os.geteuid() != 0:
        return Account()
    if data and data.exists() and (owner := data.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid)
    raise DatabaseAccessError("Postgres refuses to run as root, and there is no account postgres or nobody")
