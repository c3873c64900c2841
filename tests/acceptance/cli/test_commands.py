"""The commands as a user runs them: help, migrations, jobs and a database for development."""

import json
import shlex
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import pytest

from eventflow import JobId
from eventflow.cli.exits import ExitCode
from eventflow.postgres import Connection
from eventflow.postgres.migrator import latest_version, migrations
from tests.acceptance.cli.command_line import (
    SECONDS,
    CommandLine,
    Process,
    Stubborn,
    Work,
    flow,
    schedule,
)
from tests.support.postgres import PASSWORD, Database

# Help, usage and installation


async def test_the_command_and_the_module_are_one(cli: CommandLine) -> None:
    """``eventflow`` and ``python -m eventflow`` show the same help."""
    as_module = subprocess.Popen([sys.executable, "-m", "eventflow", "--help"], stdout=subprocess.PIPE, text=True)
    command = await cli.run("--help")

    assert as_module.communicate(timeout=SECONDS)[0] == command.out
    assert as_module.returncode == command.process.returncode == ExitCode.DONE
    assert "worker       Run the jobs of an application until stopped." in command.out


@pytest.mark.parametrize("missing", ["cyclopts", "rich"])
def test_without_the_extra_one_line_says_how_to_install_it(missing: str) -> None:
    script = f"import sys; sys.modules[{missing!r}] = None; from eventflow.cli import main; main()"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=SECONDS, check=False)

    assert done.returncode == ExitCode.USAGE
    assert done.stderr == "The command line needs an extra: pip install 'eventflow-py[cli]'\n"
    assert done.stdout == ""


async def test_wrong_usage_exits_with_2(cli: CommandLine) -> None:
    """One line on standard error says what is wrong; nothing is on standard output."""
    refused = {
        cli.worker(EVENTFLOW_DSN=""): "error: no database: set EVENTFLOW_DSN",
        cli.start("worker", "shop:log"): "error: shop:log is not an EventFlow but of type Logger",
    }
    for process, says in refused.items():
        assert await process.ended() == ExitCode.USAGE
        assert says in process.err
        assert process.out == ""


# Migrations


async def test_migrate_checks_applies_and_repeats(cli: CommandLine, empty_database: Database) -> None:
    cli.environment["EVENTFLOW_DSN"] = empty_database.admin

    async def migrate(*options: str) -> tuple[int, str]:
        process = await cli.run("migrate", *options)
        return process.process.returncode, process.out

    all_of_them = [migration.name for migration in migrations()]
    at = f"schema 'eventflow' is at migration {latest_version()}\n"
    assert await migrate("--check") == (ExitCode.MIGRATIONS_MISSING, "".join(f"missing {n}\n" for n in all_of_them))
    assert await migrate() == (ExitCode.DONE, "".join(f"applied {n}\n" for n in all_of_them))
    assert await migrate() == (ExitCode.DONE, f"nothing to do: {at}")
    assert await migrate("--check") == (ExitCode.DONE, at)


async def test_the_printed_sql_is_what_migrate_applies(cli: CommandLine, empty_database: Database) -> None:
    """It needs no database to be printed, and may be applied by other means."""
    printed = await cli.run("migrate", "--sql", "--schema=orders", EVENTFLOW_DSN="")
    connection = await asyncpg.connect(empty_database.admin)
    await connection.execute(printed.out)
    await connection.close()

    checked = await cli.run("migrate", "--check", "--schema=orders", EVENTFLOW_DSN=empty_database.admin)

    assert checked.process.returncode == ExitCode.DONE


async def test_tables_newer_than_the_code_are_left_alone(cli: CommandLine, admin: Connection, admin_dsn: str) -> None:
    await admin.execute("INSERT INTO eventflow.migration (version, name) VALUES (9999, 'from the future')")

    for process in (cli.start("migrate", "--check"), cli.worker()):
        assert await process.ended() == ExitCode.FAILED
        assert process.err.startswith(
            f"error: schema 'eventflow' is at migration 9999, newer than the {latest_version()} this code knows"
        )


async def test_errors_of_the_database_are_one_line(cli: CommandLine, dsn: str, tmp_path: Path) -> None:
    """Exit code 1, no traceback, and no password, however badly the address is written."""
    nowhere = f"postgresql://shop:{PASSWORD}@/shop?host={tmp_path}"
    refused = [
        cli.start("jobs", "list", EVENTFLOW_DSN=nowhere),
        cli.start("migrate", EVENTFLOW_DSN=f"postgresql://shop:{PASSWORD}/more@localhost/shop"),
        cli.worker(EVENTFLOW_DSN=f"postgresql://shop:{PASSWORD}?more@localhost/shop"),
        cli.worker(EVENTFLOW_DSN=dsn.replace("test_worker:", "nobody_at_all:")),
        cli.worker("--schema=elsewhere"),
    ]
    for process in refused:
        assert await process.ended() == ExitCode.FAILED
        assert process.err.startswith("error: ")
        assert process.err.count("\n") == 1
        assert process.out == ""


# Jobs


async def test_jobs_are_listed_shown_and_cancelled(cli: CommandLine, dsn: str) -> None:
    [first] = await schedule(dsn, Work(seconds=1.5), delay=timedelta(days=1), queue="mail")
    [second] = await schedule(dsn, Stubborn(), delay=timedelta(days=1))

    everything = cli.start("jobs", "list")
    filtered = cli.start("jobs", "list", "--state=waiting", "--queue=mail", "--name=Work", "--limit=5", "--json")
    assert [await everything.ended(), await filtered.ended()] == [ExitCode.DONE] * 2
    assert everything.out.index(second) < everything.out.index(first), "the newest comes first"
    [found] = json.loads(filtered.out)
    assert (found["id"], found["state"], found["payload"]) == (first, "waiting", {"seconds": 1.5})

    shown, shown_json = cli.start("jobs", "show", first), cli.start("jobs", "show", first.uuid, "--json")
    assert [await p.ended() for p in (shown, shown_json)] == [ExitCode.DONE] * 2
    assert '"seconds": 1.5' in shown.out
    assert json.loads(shown_json.out)["queue"] == "mail"

    assert (await cli.run("jobs", "cancel", first)).out == f"{first} is cancelled\n"
    again = await cli.run("jobs", "cancel", first, "--json")
    assert again.process.returncode == ExitCode.NOT_FOUND
    assert json.loads(again.out) == {"id": first, "outcome": "not_found"}


async def test_a_job_that_is_not_there_exits_with_4(cli: CommandLine) -> None:
    nobody = JobId.new()
    for process in (cli.start("jobs", "show", nobody, "--json"), cli.start("jobs", "cancel", nobody)):
        assert await process.ended() == ExitCode.NOT_FOUND
        assert process.err == f"there is no job {nobody}, or its history has expired\n"


async def test_viewers_may_look_but_not_cancel(cli: CommandLine, dsn: str, viewer_dsn: str) -> None:
    [job_id] = await schedule(dsn, Work(), delay=timedelta(days=1))
    cli.environment["EVENTFLOW_DSN"] = viewer_dsn

    shown, refused = cli.start("jobs", "show", job_id), cli.start("jobs", "cancel", job_id)

    assert await shown.ended() == ExitCode.DONE
    assert await refused.ended() == ExitCode.FAILED
    assert "permission denied" in refused.err


# The database for development


async def development_address(dev: Process) -> str:
    """What the one line on standard output, pasted into a shell, sets."""
    await dev.says("stop it with Ctrl-C")
    [export, assignment] = shlex.split(dev.out)
    variable, _, address = assignment.partition("=")
    assert (export, variable) == ("export", "EVENTFLOW_DSN")
    return address


async def test_dev_serves_a_migrated_database_until_it_is_stopped(cli: CommandLine) -> None:
    """Its data stays."""
    with TemporaryDirectory(prefix="eventflow-cli-") as directory:
        Path(directory).chmod(0o755)
        dev = cli.start("dev", f"--data={directory}/data")
        address = await development_address(dev)
        [job_id] = await schedule(address, Work(), delay=timedelta(days=1))
        assert await dev.stopped_by(signal.SIGTERM) == ExitCode.DONE
        with pytest.raises((ConnectionError, FileNotFoundError)):
            await asyncpg.connect(address)

        again = cli.start("dev", f"--data={directory}/data", "--tcp")
        address = await development_address(again)
        assert "@127.0.0.1:" in address
        async with flow.open(address) as app:
            assert await app.jobs.get(job_id) is not None
        assert await again.stopped_by(signal.SIGINT) == ExitCode.DONE
