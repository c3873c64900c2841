"""The data directory: made by initdb or copied from a template, always whole."""

import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

from eventflow.devdb.accounts import Account, server_account
from eventflow.devdb.binaries import PostgresBinaries, binaries_for, find_postgres_binaries
from eventflow.devdb.cache import cached
from eventflow.devdb.errors import DevDatabaseError, PostgresFailedError, PostgresVersionMismatchError

SUPERUSER = "postgres"


def cached_template(binaries: PostgresBinaries | None = None) -> Path:
    """
    An empty data directory to copy, which is several times faster than initdb.

    Made on first use and kept in the cache for every version; processes may race to make it. It is not
    safe against a crash of the machine, its copies may be.

    Args:
        binaries: What makes it and will serve its copies; by default what this machine has.

    Raises:
        DevDatabaseError: No binaries, or initdb fails.
    """
    account = server_account()
    binaries = binaries_for(account, binaries or find_postgres_binaries())
    arguments = (*_initdb_arguments(binaries.major), "--no-sync")
    key = sha256(repr((arguments, account)).encode()).hexdigest()[:12]
    return cached(f"cluster-{binaries.version}-{key}", lambda t: _initdb(t, binaries, account, arguments))


def create_cluster(
    data: Path, *, binaries: PostgresBinaries, account: Account, template: Path | None, durable: bool
) -> None:
    """
    Make the data directory *data*, which appears when it is complete.

    It is made under another name, so what a killed predecessor left half-finished is wiped and redone.

    Raises:
        PostgresFailedError: initdb fails, or the template cannot be copied.
    """
    unfinished = data.with_name(f"{data.name}.unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    if template is None:
        sync = () if durable else ("--no-sync",)
        _initdb(unfinished, binaries, account, (*_initdb_arguments(binaries.major), *sync))
    else:
        _copy(template, unfinished)
        if durable:
            account.run([binaries.program("initdb"), "--sync-only"], data=unfinished)
    unfinished.rename(data)


def require_same_major(data: Path, binaries: PostgresBinaries) -> None:
    """
    Refuse data that *binaries* cannot serve.

    Raises:
        PostgresVersionMismatchError: Another major version made it.
        DevDatabaseError: It is no data directory at all.
    """
    try:
        major = int((data / "PG_VERSION").read_text())
    except (FileNotFoundError, ValueError) as exc:
        raise DevDatabaseError(f"{data} is not a Postgres data directory; delete it to start empty") from exc
    if major != binaries.major:
        raise PostgresVersionMismatchError(data, major, binaries.directory, binaries.major)


def set_superuser_password(data: Path, password: str, *, binaries: PostgresBinaries, account: Account) -> None:
    """Store the password TCP connections need, while no server runs on *data*."""
    statement = f"ALTER ROLE {SUPERUSER} PASSWORD '{password}'\n"
    command = [binaries.program("postgres"), "--single", "-c", "exit_on_error=on", SUPERUSER]
    account.run(command, data=data, stdin=statement)


def _initdb_arguments(major: int) -> tuple[str, ...]:
    # The built-in provider knows all of Unicode without any locale of the operating system.
    locale = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8") if major >= 17 else ()
    authentication = ("--auth-local=trust", "--auth-host=scram-sha-256")
    return (f"--username={SUPERUSER}", "--encoding=UTF8", "--locale=C", *locale, *authentication)


def _initdb(directory: Path, binaries: PostgresBinaries, account: Account, arguments: tuple[str, ...]) -> None:
    directory.mkdir(mode=0o700)
    account.take(directory)
    account.run([binaries.program("initdb"), *arguments], data=directory)


def _copy(template: Path, directory: Path) -> None:
    # cp shares the blocks of the files where the file system can; copytree would lose the owner.
    command = ["cp", "-a", template, directory]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    if completed.returncode:
        raise PostgresFailedError("cp", completed.stderr.strip())
