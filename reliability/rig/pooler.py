"""A pgbouncer before a server."""

import os
import shutil
import socket
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

from eventflow.devdb.accounts import server_account
from eventflow.devdb.postmaster import wait_until

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")

_PORT = 6432  # in the name of the socket, which is in a directory of its own
_START_SECONDS = 10.0


class PgBouncer:
    """
    A running pgbouncer; :func:`pgbouncer` starts one.

    Args:
        directory: Its configuration, log and socket; empty.
        target: Address of the database and of the user who comes through.
        pool_mode: After what a client gives its server connection back.
        pool_size: Server connections for all clients together.
    """

    def __init__(self, directory: Path, target: str, *, pool_mode: str, pool_size: int) -> None:
        self._directory = directory
        self._account = server_account()
        self._process: subprocess.Popen[bytes] | None = None
        self.log_path = directory / "pgbouncer.log"
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self._user, self._name = unquote(parts.username or ""), parts.path.lstrip("/")
        self._host, self._port = query.get("host", parts.hostname or "localhost"), query.get("port", parts.port or 5432)
        self._write("users", f'"{self._user}" "{unquote(parts.password or "")}"\n')
        self._settings = (
            f"[pgbouncer]\npool_mode = {pool_mode}\ndefault_pool_size = {pool_size}\n"
            f"unix_socket_dir = {directory}\nlisten_port = {_PORT}\nlogfile = {self.log_path}\n"
            f"auth_type = trust\nauth_file = {directory / 'users'}\nserver_login_retry = 0.1\n"
        )

    @property
    def dsn(self) -> str:
        """The address through it."""
        return f"postgresql://{self._user}@/{self._name}?host={self._directory}&port={_PORT}"

    def start(self) -> None:
        """Serve; blocks until it accepts connections."""
        assert PROGRAM is not None
        with self._way_to_server() as (host, descriptors):
            database = f"[databases]\n{self._name} = host={host} port={self._port} dbname={self._name}\n"
            self._write("pgbouncer.ini", database + self._settings)
            self._process = subprocess.Popen(
                [PROGRAM, "--quiet", self._directory / "pgbouncer.ini"],
                user=self._account.uid, group=self._account.gid, extra_groups=self._account.extra_groups,
                cwd="/", stdin=subprocess.DEVNULL, pass_fds=descriptors,
            )  # fmt: skip
        if not wait_until(self._accepts_connections, _START_SECONDS):
            raise AssertionError(f"pgbouncer does not start:\n{self.log_path.read_text()}")

    def stop(self) -> None:
        """End it at once, whatever its clients do."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextmanager
    def _way_to_server(self) -> Generator[tuple[str, tuple[int, ...]]]:
        """Where the server is, and what a child needs to get to its socket past directories that are closed to it."""
        if self._host.startswith("/"):
            with self._account.path_to(Path(self._host)) as way:
                yield way
        else:
            yield self._host, ()

    def _write(self, name: str, text: str) -> None:
        path = self._directory / name
        path.write_text(text)
        self._account.take(path)

    def _accepts_connections(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self._directory / f".s.PGSQL.{_PORT}"))
            except OSError:
                return False
        return True


@contextmanager
def pgbouncer(
    target: str, *, pool_mode: Literal["transaction", "session"] = "transaction", pool_size: int = 5
) -> Generator[PgBouncer]:
    """
    A pgbouncer before one database.

    Args:
        target: Address of the database and of the user who comes through.
        pool_mode: After what a client gives its server connection back.
        pool_size: Server connections for all clients together.
    """
    with TemporaryDirectory(prefix="eventflow-pgbouncer-") as directory:
        server_account().take(Path(directory))
        bouncer = PgBouncer(Path(directory), target, pool_mode=pool_mode, pool_size=pool_size)
        bouncer.start()
        try:
            yield bouncer
        finally:
            bouncer.stop()
