"""The server process: started as a child that does not outlive us, watched until ready, stopped."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eventflow.devdb.accounts import Account, server_environment
from eventflow.devdb.binaries import PostgresBinaries
from eventflow.devdb.errors import DevDatabaseError, PostgresFailedError

StopMode = Literal["smart", "fast", "immediate"]

START_SECONDS = 60.0
STOP_SECONDS = 15.0
_KEPT_LOG_BYTES = 10_000_000
_SHOWN_LOG_LINES = 20
_PR_SET_PDEATHSIG = 1

# Never SIGKILL: it leaves shared memory and backends behind, which keep the next server from starting.
_SIGNALS: Mapping[StopMode, tuple[signal.Signals, ...]] = {
    "smart": (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT),
    "fast": (signal.SIGINT, signal.SIGQUIT),
    "immediate": (signal.SIGQUIT,),
}


@dataclass(frozen=True, slots=True)
class PostmasterStatus:
    """What a postmaster says about itself in ``postmaster.pid``."""

    pid: int
    port: int
    socket_directory: Path
    listens_on_tcp: bool
    ready: bool


def read_status(data: Path) -> PostmasterStatus | None:
    """The status of the postmaster of *data*, or None while it has none or has only begun to start."""
    try:
        lines = os.fsdecode((data / "postmaster.pid").read_bytes()).splitlines()
    except FileNotFoundError:
        return None
    if len(lines) < 8:
        return None
    socket_directory = Path(os.path.normpath(data / lines[4]))
    return PostmasterStatus(int(lines[0]), int(lines[3]), socket_directory, bool(lines[5]), lines[7].strip() == "ready")


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Look until *condition* holds; False if it did not within *seconds*."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)  # the server announces itself in a file
    return True


class Postmaster:
    """The server of a data directory, as a direct child of this process."""

    def __init__(self, data: Path, log_path: Path, *, binaries: PostgresBinaries, account: Account) -> None:
        self._data = data
        self._log_path = log_path
        self._binaries = binaries
        self._account = account
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self, settings: Mapping[str, str]) -> PostmasterStatus:
        """
        Start the server, and wait until it accepts connections.

        Raises:
            PostgresFailedError: It ended, or is not ready after a minute; with the end of its log.
            DevDatabaseError: This is not the main thread.
        """
        log_start = self._rotate_log()
        process = self._process = self._launch(settings)
        wait_until(lambda: process.poll() is not None or self._status() is not None, START_SECONDS)
        if status := self._status():
            return status
        self.stop("fast")
        raise PostgresFailedError("postgres", self._log_since(log_start))

    def stop(self, mode: StopMode) -> None:
        """
        End the server, with the next stronger mode after 15 s each.

        Raises:
            DevDatabaseError: It is still there after all of them.
        """
        if self._process is None:
            return
        for number in _SIGNALS[mode]:
            self._process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
                return
        raise DevDatabaseError(f"postmaster {self._process.pid} ignores {signal.SIGQUIT.name}")

    def _status(self) -> PostmasterStatus | None:
        """Only what this very process wrote; the file may be a predecessor's."""
        status = read_status(self._data)
        ours = status and status.ready and self._process and status.pid == self._process.pid
        return status if ours and self.running else None

    def _launch(self, settings: Mapping[str, str]) -> subprocess.Popen[bytes]:
        options = [f"--{name}={value}" for name, value in settings.items()]
        with (
            self._account.path_to(self._data) as (path, descriptors),
            self._log_path.open("ab") as log,
            warnings.catch_warnings(),
        ):
            # Python 3.12 warns of forks beside threads; this child only asks for a signal.
            warnings.filterwarnings("ignore", r".*multi-threaded", DeprecationWarning)
            return subprocess.Popen(
                [self._binaries.program("postgres"), "-D", path, _mark(self._data), *options],
                user=self._account.uid, group=self._account.gid, extra_groups=self._account.extra_groups,
                cwd="/", env=server_environment(), pass_fds=descriptors, umask=0o077,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,  # Ctrl-C in a terminal is for us; we then stop it in order
                preexec_fn=_end_with_parent(),  # noqa: PLW1509 - calls nothing that takes a lock
            )  # fmt: skip

    def _rotate_log(self) -> int:
        """How long the log is before this run adds to it."""
        size = self._log_path.stat().st_size if self._log_path.exists() else 0
        if size <= _KEPT_LOG_BYTES:
            return size
        self._log_path.replace(self._log_path.with_suffix(".log.1"))
        return 0

    def _log_since(self, position: int) -> str:
        with self._log_path.open("rb") as log:
            log.seek(position)
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-_SHOWN_LOG_LINES:])


def clear_predecessor(data: Path) -> None:
    """
    Make room for a new postmaster of *data*, whose last owner died.

    A postmaster of ours that still runs is ended. A ``postmaster.pid`` whose pid belongs to another process
    by now, or to a zombie, would keep Postgres from starting until a human deletes it; it is marked stale.
    """
    lock = data / "postmaster.pid"
    try:
        first_line, rest = lock.read_bytes().split(b"\n", maxsplit=1)
        pid = abs(int(first_line))  # negative in single-user mode
    except FileNotFoundError:
        return
    except ValueError:  # the machine crashed before it was written
        lock.unlink()
        return
    ours = os.fsencode(_mark(data))
    if ours in _command_line(pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
        wait_until(lambda: ours not in _command_line(pid), START_SECONDS)
    if b"postgres" in _command_line(pid):
        return  # started by hand: it keeps the data, and the new server will say so
    for socket_lock in data.glob(".s.PGSQL.*.lock"):
        socket_lock.unlink()
    # Postgres takes its own parent's pid for a leftover of an earlier boot, and then still checks by the
    # shared memory on a later line that no backend is left. Deleting the file would skip that check.
    with suppress(FileNotFoundError), lock.open("r+b") as stale:
        stale.write(b"%d\n%s" % (os.getpid(), rest))
        stale.truncate()


def _mark(data: Path) -> str:
    """A setting of no effect, whose place in the arguments tells our postmaster from another process."""
    return f"--eventflow.devdb={data}"


def _command_line(pid: int) -> bytes:
    """The arguments of a process; empty for a zombie and if there is none."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return b""
    command = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, check=False).stdout


def _end_with_parent() -> Callable[[], None] | None:
    """
    What the child runs before it becomes Postgres: on Linux, ask for SIGINT when the parent is gone.

    Raises:
        DevDatabaseError: This is not the main thread. The signal comes when the *thread* that started the
            child ends, so any other would take the server along.
    """
    if sys.platform != "linux":
        return None  # an orphan is ended by the next start
    if threading.current_thread() is not threading.main_thread():
        raise DevDatabaseError("start the database in the main thread: it ends with the thread that starts it")
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl

    def ask_for_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGINT))
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return ask_for_signal
