"""A Postgres server of its own for a project or a test: started, attached to, addressed, stopped."""

import fcntl
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from eventflow.devdb.accounts import Account, server_account
from eventflow.devdb.binaries import PostgresBinaries, binaries_for, find_postgres_binaries
from eventflow.devdb.cluster import SUPERUSER, create_cluster, require_same_major, set_superuser_password
from eventflow.devdb.errors import (
    DatabaseAccessError,
    DatabaseBusyError,
    DatabaseNotStartedError,
    DevDatabaseError,
    PostgresFailedError,
)
from eventflow.devdb.postmaster import (
    START_SECONDS,
    Postmaster,
    PostmasterStatus,
    StopMode,
    clear_predecessor,
    read_status,
    wait_until,
)

_SOCKET_PORT = 5432
_LONGEST_SOCKET_DIRECTORY = 84  # bytes; an address may have 107, on macOS 103, file name included

# A dead predecessor's backends that have not noticed yet, or a port another process took before us.
_PASSING_TROUBLE = ("already in use", "still in use")

_THROWAWAY = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class EmbeddedPostgres:
    """
    A Postgres server that lives in one directory and no longer than this process.

    ``start()`` makes the data on first use, and starts the server as a child; a process that finds it
    running attaches to it and never stops it. On Linux the server is gone moments after its owner, however
    that ends; elsewhere a server whose owner was killed stays until the next start. Data stays until the
    directory is deleted.

    In *root*: ``data``, ``postgres.log``, ``owner.lock`` (held by the owner), ``password`` (with *tcp*).

    Args:
        root: The directory, made if missing; nothing outside of it is changed.
        durable: False for data that may be lost: faster without fsync, but a server that is killed forgets
            its last commits, and a crash of the machine may take the rest.
        settings: More server settings, as in ``postgresql.conf``.
        tcp: Listen on a free port of 127.0.0.1, with a random password, and not only on a Unix socket
            that the account of the server and root can open.
        template: A data directory without a server to copy instead of running initdb, from
            :func:`cached_template` or the ``data_directory`` of another.
        binaries: Which Postgres to run; by default :func:`find_postgres_binaries`.

    Not safe for use by several threads. Linux and macOS.
    """

    def __init__(
        self,
        root: Path,
        *,
        durable: bool = True,
        settings: Mapping[str, str] = {},
        tcp: bool = False,
        template: Path | None = None,
        binaries: PostgresBinaries | None = None,
    ) -> None:
        self.root = root.resolve()
        self.log_path = self.root / "postgres.log"
        self.data_directory = self.root / "data"
        self._password_path = self.root / "password"
        self._durable = durable
        self._settings = dict(settings)
        self._tcp = tcp
        self._template = template
        self._binaries = binaries
        self._lock: int | None = None
        self._postmaster: Postmaster | None = None
        self._status: PostmasterStatus | None = None
        self._socket_directory: Path | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def attached(self) -> bool:
        """Whether another process owns the server; its end is then the server's end."""
        return self._status is not None and self._lock is None

    @property
    def running(self) -> bool:
        """Whether the server is there, owned or attached: false once it was stopped, or its death noticed."""
        if self._postmaster is not None:
            return self._postmaster.running
        return self._status is not None and _accepts_connections(self._status)

    @property
    def pid(self) -> int:
        """
        The process id of the postmaster.

        Raises:
            DatabaseNotStartedError: Outside of ``start()`` and ``stop()``.
        """
        return self._started().pid

    def dsn(self, database: str = "postgres", user: str = SUPERUSER) -> str:
        """
        The address of *database*, for asyncpg and libpq; with *tcp*, the superuser's holds the password.

        Raises:
            DatabaseNotStartedError: Outside of ``start()`` and ``stop()``.
            DevDatabaseError: Attached with *tcp* to a server that does not listen on TCP.
        """
        status = self._started()
        user, database = quote(user, safe=""), quote(database, safe="")
        if not self._tcp:
            # The port is in the name of the socket; said here, $PGPORT does not change it.
            directory = quote(str(status.socket_directory))
            return f"postgresql://{user}@/{database}?host={directory}&port={status.port}"
        if not status.listens_on_tcp:
            raise DevDatabaseError(f"the owner of {self.root} started the server without TCP")
        credentials = f"{user}:{self._password_path.read_text()}" if user == SUPERUSER else user
        return f"postgresql://{credentials}@127.0.0.1:{status.port}/{database}"

    def start(self) -> None:
        """
        Serve: start the server, or attach to the one another process runs here.

        Blocks until the server accepts connections (about 0.5 s, with a template 0.2 s, later 0.05 s), so
        call it before the event loop starts, in the main thread. Does nothing if the server runs already;
        starts it again if it was stopped or killed.

        Raises:
            DevDatabaseError: It cannot; the subclass and the message say what to do.
        """
        if self.running:
            return
        self._status = None
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not wait_until(lambda: self._acquire_lock() or self._attach(), START_SECONDS):
                raise DatabaseBusyError(self.root)
            if self._lock is not None:
                self._start_as_owner()
        except BaseException as exc:
            self.stop()
            if isinstance(exc, PermissionError) and not isinstance(exc, DevDatabaseError):
                raise DatabaseAccessError(f"{self.root} belongs to another account: {exc}") from exc
            raise

    def stop(self, mode: StopMode = "fast") -> None:
        """
        Stop the server if this process owns it, and leave it alone if it is only attached.

        *smart* waits for clients to leave, *fast* disconnects them, *immediate* is a crash that the next
        start recovers from. After 15 s each turns into the next. Safe to repeat.
        """
        if self._postmaster is not None:
            self._postmaster.stop(mode)
        self._postmaster = self._status = None
        if self._socket_directory is not None:
            shutil.rmtree(self._socket_directory, ignore_errors=True)
            self._socket_directory = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _started(self) -> PostmasterStatus:
        if self._status is None:
            raise DatabaseNotStartedError
        return self._status

    def _acquire_lock(self) -> bool:
        """Own the directory, unless another process does; the lock ends with the process that holds it."""
        if self._lock is not None:
            return True
        lock = os.open(self.root / "owner.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        self._lock = lock
        return True

    def _attach(self) -> bool:
        status = read_status(self.data_directory)
        if status is None or not status.ready or not _accepts_connections(status):
            return False
        self._status = status
        return True

    def _start_as_owner(self) -> None:
        made = self.data_directory.exists()
        account = server_account(self.data_directory if made else self._template)
        binaries = binaries_for(account, self._binaries or find_postgres_binaries())
        if not made:
            self._password_path.unlink(missing_ok=True)
            create_cluster(
                self.data_directory,
                binaries=binaries,
                account=account,
                template=self._template,
                durable=self._durable,
            )
        require_same_major(self.data_directory, binaries)
        clear_predecessor(self.data_directory)
        if self._tcp and not self._password_path.exists():
            password = secrets.token_urlsafe(24)
            set_superuser_password(self.data_directory, password, binaries=binaries, account=account)
            self._password_path.touch(mode=0o600)
            self._password_path.write_text(password)
        self._postmaster = Postmaster(self.data_directory, self.log_path, binaries=binaries, account=account)
        self._status = self._start_postmaster(self._postmaster, account)

    def _start_postmaster(self, postmaster: Postmaster, account: Account) -> PostmasterStatus:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return postmaster.start(self._server_settings(account))
            except PostgresFailedError as exc:
                passing = any(words in exc.output for words in _PASSING_TROUBLE)
                if not passing or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)  # what is in the way belongs to others and tells nobody

    def _server_settings(self, account: Account) -> dict[str, str]:
        # Relative to the data directory, which the server may enter even where it cannot pass the parents.
        socket_directory = "." if self._fits_a_socket() else self._make_socket_directory(account)
        defaults = {
            "timezone": "UTC",
            "log_timezone": "UTC",
            "unix_socket_directories": socket_directory,
            "unix_socket_permissions": "0700",
            "listen_addresses": "127.0.0.1" if self._tcp else "",
            "port": str(_free_port() if self._tcp else _SOCKET_PORT),
        }
        return defaults | ({} if self._durable else _THROWAWAY) | self._settings

    def _fits_a_socket(self) -> bool:
        directory = os.fsencode(self.data_directory)
        listed = b"," in directory  # clients would read several hosts
        return len(directory) <= _LONGEST_SOCKET_DIRECTORY and not listed

    def _make_socket_directory(self, account: Account) -> str:
        if self._socket_directory is None:
            # Not $TMPDIR, which is long itself on macOS.
            self._socket_directory = Path(tempfile.mkdtemp(prefix="eventflow-", dir="/tmp"))
            account.take(self._socket_directory)
        return str(self._socket_directory)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _accepts_connections(status: PostmasterStatus) -> bool:
    """A postmaster that was killed leaves a status that says it is ready."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(status.socket_directory / f".s.PGSQL.{status.port}"))
        except OSError:
            return False
        return True
