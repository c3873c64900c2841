"""The commands as a user runs them: real processes, signals and exit codes, on a real Postgres."""

import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncGenerator, Generator, Sequence
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import pytest

from eventflow import EventFlow, Job, JobContext, JobId
from eventflow.cli.exits import ExitCode
from eventflow.devdb import EmbeddedPostgres, cached_template
from eventflow.postgres import Connection
from eventflow.postgres.migrator import latest_version, migrations
from tests.support.postgres import PASSWORD, Database
from tests.support.waiting import eventually, until

COMMAND = str(Path(sys.executable).with_name("eventflow"))
SECONDS = 20.0
"""No command here takes longer, on however busy a machine."""
ENDED_AT_ONCE = 128 + signal.SIGTERM
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, or needs the death signal")

flow = EventFlow("shop")  # schedules what the workers of these tests run


@flow.job
class Work(Job):
    seconds: float = 0

    async def execute(self, context: JobContext) -> None: ...


@flow.job
class Stubborn(Job):
    async def execute(self, context: JobContext) -> None: ...


@flow.job
class Blocking(Job):
    async def execute(self, context: JobContext) -> None: ...


SHOP = """
    import asyncio, logging, os, time
    from eventflow import EventFlow, Job, JobContext

    log = logging.getLogger("shop")
    flow = EventFlow("shop")

    @flow.job
    class Work(Job):
        seconds: float = 0

        async def execute(self, context: JobContext) -> None:
            log.info("working", extra={"for": self.seconds})
            await asyncio.sleep(self.seconds)
            log.info("worked")

    @flow.job
    class Stubborn(Job):
        async def execute(self, context: JobContext) -> None:
            log.info("working")
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    log.info("not impressed")

    @flow.job
    class Blocking(Job):
        async def execute(self, context: JobContext) -> None:
            log.info("working")
            time.sleep(60)
"""


class Process:
    """A command that runs; what it says is in files."""

    def __init__(self, arguments: Sequence[str], directory: Path, environment: dict[str, str]) -> None:
        number = len(list(directory.glob("*.out")))
        self._out, self._err = directory / f"{number}.out", directory / f"{number}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, cwd=directory
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    async def says(self, text: str, times: int = 1) -> None:
        """Wait until it has said so."""

        def said() -> bool:
            heard = (self.out + self.err).count(text) >= times
            assert heard or self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.out}{self.err}"
            return heard

        said.__qualname__ = f"{text!r} of {self.process.args}"
        await until(said, within=SECONDS)

    async def stopped_by(self, *signals: signal.Signals) -> int:
        """Send the first signal, and the second as an impatient person does; returns the exit code."""
        self.process.send_signal(signals[0])
        if len(signals) > 1:
            await self.says("process.stopping")

            def again() -> bool:
                self.process.send_signal(signals[1])
                return self.process.poll() is not None

            await until(again, within=SECONDS)
        return await self.ended()

    async def ended(self) -> int:
        """Its exit code."""
        await until(lambda: self.process.poll() is not None, within=SECONDS)
        return self.process.wait()


class CommandLine:
    """
    Starts commands, in a directory that holds the module ``shop``.

    Attributes:
        directory: Where they run.
        environment: What they are given.
    """

    def __init__(self, directory: Path, dsn: str) -> None:
        self.directory = directory
        self.environment = {**os.environ, "EVENTFLOW_DSN": dsn}
        self.processes: list[Process] = []

    def start(self, *arguments: str, **environment: str) -> Process:
        process = Process(arguments, self.directory, self.environment | environment)
        self.processes.append(process)
        return process

    def worker(
        self, *options: str, target: str = "shop:flow", grace: float = 0.3, clean_up: float = 5, **environment: str
    ) -> Process:
        """``eventflow worker``, with short periods."""
        periods = (f"--grace-period={grace}", f"--clean-up-period={clean_up}")
        return self.start("worker", target, *periods, *options, **environment)

    async def run(self, *arguments: str, **environment: str) -> Process:
        """A command that ends by itself."""
        process = self.start(*arguments, **environment)
        await process.ended()
        return process

    def write(self, module: str, source: str) -> None:
        (self.directory / f"{module}.py").write_text(textwrap.dedent(source))


@pytest.fixture
def cli(tmp_path: Path, dsn: str) -> Generator[CommandLine]:
    """The command line on this test's database. What it said holds no password, whatever it was."""
    commands = CommandLine(tmp_path, dsn)
    commands.write("shop", SHOP)
    yield commands
    for process in commands.processes:
        process.process.kill()
        process.process.wait()
    for process in commands.processes:
        assert PASSWORD not in process.out + process.err
        assert dsn not in process.out + process.err


@pytest.fixture
async def admin(admin_dsn: str) -> AsyncGenerator[Connection]:
    """A superuser's connection to this test's database."""
    connection = await asyncpg.connect(admin_dsn)
    yield connection
    await connection.close()


async def schedule(dsn: str, *jobs: Job, queue: str | None = None, delay: timedelta | None = None) -> list[JobId]:
    """Schedule these jobs as a program of the user would."""
    async with flow.open(dsn) as app:
        return [await app.jobs.schedule(job, queue=queue or "default", delay=delay) for job in jobs]


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


# A worker


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_worker_stops_with_0(stop: signal.Signals, cli: CommandLine, admin: Connection) -> None:
    """Its lines are readable, and the worker is closed in the database."""
    worker = cli.worker()
    await worker.says("worker.started worker_id=worker-")

    assert await worker.stopped_by(stop) == ExitCode.DONE

    assert f" process.stopping signal={stop.name} within_seconds=5.3\n" in worker.err
    assert " worker.stopped worker_id=" in worker.err
    assert await admin.fetchval("SELECT closed_at IS NOT NULL FROM eventflow.worker WHERE pid = $1", worker.pid)


async def test_the_log_level_is_an_option(cli: CommandLine, admin: Connection) -> None:
    worker = cli.worker("--log-level=warning")

    async def registered() -> bool:
        return await admin.fetchval("SELECT count(*) FROM eventflow.worker WHERE pid = $1", worker.pid) == 1

    await eventually(registered)
    assert await worker.stopped_by(signal.SIGTERM) == ExitCode.DONE
    assert worker.err == ""


async def test_a_job_may_end_within_the_grace_period(cli: CommandLine, dsn: str, admin: Connection) -> None:
    worker = cli.worker(grace=10)
    [job_id] = await schedule(dsn, Work(seconds=1))
    await worker.says("working for=1.0")
    worker.process.send_signal(signal.SIGINT)  # two in one moment are one, as ``timeout`` sends them

    assert await worker.stopped_by(signal.SIGTERM) == ExitCode.DONE

    assert "worked" in worker.err
    assert await admin.fetchval("SELECT state FROM eventflow.job_history WHERE id = $1", job_id.uuid) == "succeeded"


async def test_a_job_beyond_the_grace_period_waits_again_at_no_cost(
    cli: CommandLine, dsn: str, admin: Connection
) -> None:
    worker = cli.worker()
    [job_id] = await schedule(dsn, Work(seconds=60))
    await worker.says("working")

    assert await worker.stopped_by(signal.SIGTERM) == ExitCode.DONE

    assert "worked" not in worker.err
    assert await admin.fetchval("SELECT attempt FROM eventflow.job WHERE id = $1", job_id.uuid) == 0


@pytest.mark.parametrize(
    ("job", "second", "code"), [(Work(seconds=60), signal.SIGTERM, 143), (Blocking(), signal.SIGINT, 130)]
)
async def test_a_second_signal_ends_it_at_once(
    job: Job, second: signal.Signals, code: int, cli: CommandLine, dsn: str
) -> None:
    """Also while a job keeps the event loop from running; then nobody says that it is stopping."""
    worker = cli.worker(grace=60)
    await schedule(dsn, job)
    await worker.says("working")
    worker.process.send_signal(signal.SIGTERM)

    def pressed_again() -> bool:
        worker.process.send_signal(second)
        return worker.process.poll() is not None

    await until(pressed_again, within=SECONDS)
    assert await worker.ended() == code
    assert f"process.ended_at_once signal={second.name}" in worker.err


@pytest.mark.parametrize("job", [Stubborn(), Blocking()])
async def test_a_job_that_does_not_give_way_cannot_keep_the_process(
    job: Job, cli: CommandLine, dsn: str, admin: Connection
) -> None:
    """It ends by force after grace and clean-up period; the job is still its own, for others to rescue."""
    worker = cli.worker(clean_up=0.5)
    [job_id] = await schedule(dsn, job)
    await worker.says("working")

    assert await worker.stopped_by(signal.SIGTERM) == ExitCode.FORCED

    assert "process.ended_by_force after_seconds=0.8" in worker.err
    assert await admin.fetchval("SELECT count(*) FROM eventflow.running WHERE id = $1", job_id.uuid) == 1


async def test_it_serves_the_queues_it_is_told(cli: CommandLine, dsn: str, admin: Connection) -> None:
    for queue in ("a", "b", "c", "d"):
        await schedule(dsn, Work(), queue=queue)
    worker = cli.worker("--queues=a,b", "--queues", "c")
    await worker.says("worked", times=3)

    assert await worker.stopped_by(signal.SIGTERM) == ExitCode.DONE
    waiting = await admin.fetch("SELECT q.name FROM eventflow.job AS j JOIN eventflow.queue AS q ON q.id = j.queue_id")
    assert [row["name"] for row in waiting] == ["d"]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_uvloop_is_used_if_it_is_installed(loop: str, cli: CommandLine, dsn: str) -> None:
    """Signals work with it and without it."""
    pytest.importorskip("uvloop")
    cli.write("sitecustomize", "" if loop == "uvloop" else "import sys; sys.modules['uvloop'] = None")
    cli.write("loops", SHOP.replace('"working"', "type(asyncio.get_running_loop()).__module__"))
    worker = cli.worker(target="loops:flow", grace=10, PYTHONPATH=str(cli.directory))
    await schedule(dsn, Work(seconds=1))
    await worker.says(f"shop: {loop}")

    assert await worker.stopped_by(signal.SIGTERM) == ExitCode.DONE
    assert "worked" in worker.err


async def test_it_waits_for_a_database_that_is_away(cli: CommandLine) -> None:
    """It says so once, begins when the database is there, and SIGTERM ends the waiting."""
    with TemporaryDirectory(prefix="eventflow-cli-") as directory:
        Path(directory).chmod(0o755)
        server = EmbeddedPostgres(Path(directory) / "postgres", durable=False, template=cached_template())
        with server:
            address = server.dsn()
            migrated = await cli.run("migrate", EVENTFLOW_DSN=address)
            assert migrated.process.returncode == ExitCode.DONE
        worker, in_vain = cli.worker(EVENTFLOW_DSN=address), cli.worker(EVENTFLOW_DSN=address)
        await worker.says("database.away error=")
        await in_vain.says("database.away error=")
        assert await in_vain.stopped_by(signal.SIGTERM) == ExitCode.DONE
        with server:
            await worker.says("worker.started")
            assert await worker.stopped_by(signal.SIGTERM) == ExitCode.DONE
        assert worker.err.count("database.away") == 1
        assert worker.err.count("database.back failures=") == 1
        assert "Traceback" not in worker.err


@pytest.mark.parametrize(
    "source",
    [
        """
        import asyncio, time
        print("starting", flush=True)
        time.sleep(60)
        """,
        """
        import asyncio, contextlib
        from eventflow import EventFlow

        @contextlib.asynccontextmanager
        async def lifespan(services):
            print("starting", flush=True)
            await asyncio.sleep(60)
            yield

        flow = EventFlow("slow", lifespan=lifespan)
        """,
    ],
    ids=["import", "lifespan"],
)
async def test_sigterm_ends_a_worker_that_is_still_starting(source: str, cli: CommandLine) -> None:
    cli.write("slow", source)
    worker = cli.worker(target="slow:flow")
    await worker.says("starting")

    assert await worker.stopped_by(signal.SIGTERM) == ExitCode.DONE
    assert "Traceback" not in worker.err


async def test_definitions_that_do_not_fit_exit_with_1(cli: CommandLine) -> None:
    """One line for eventflow's own errors; a module that fails shows where, and nothing of ours."""
    cli.write(
        "twice",
        """
        from eventflow import EventFlow, Job
        flow = EventFlow("twice")
        for _ in range(2):
            @flow.job
            class Same(Job):
                async def execute(self, context): ...
        """,
    )
    cli.write("broken", "def boom():\n    return 1 / 0\n\nboom()\n")
    twice, broken = cli.worker(target="twice:flow"), cli.worker(target="broken:flow")

    assert [await twice.ended(), await broken.ended()] == [ExitCode.FAILED] * 2
    assert "both claim the name 'Same'" in twice.err
    assert twice.err.count("\n") == 1
    assert broken.err.endswith("error: importing broken failed: ZeroDivisionError: division by zero\n")
    assert f'{cli.directory}/broken.py", line 2, in boom' in broken.err
    assert "loading.py" not in broken.err


async def test_a_bug_of_the_application_exits_with_70(cli: CommandLine) -> None:
    """The traceback is shown, without the address that the application put into it."""
    cli.write(
        "buggy",
        """
        import contextlib, os
        from eventflow import EventFlow

        @contextlib.asynccontextmanager
        async def lifespan(services):
            raise RuntimeError("no cache at " + os.environ["EVENTFLOW_DSN"])
            yield

        flow = EventFlow("buggy", lifespan=lifespan)
        """,
    )
    worker = cli.worker(target="buggy:flow")

    assert await worker.ended() == ExitCode.CRASHED
    assert "Traceback" in worker.err
    assert worker.err.endswith("RuntimeError: no cache at ***\n")


# Several processes


def children(pid: int) -> list[int]:
    """The children of a process that are not zombies."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return sorted(int(child) for child, parent, state in rows if int(parent) == pid and not state.startswith("Z"))


def alive(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(listed.strip()) and not listed.startswith("Z")


@ON_LINUX
async def test_a_supervisor_replaces_a_child_and_stops_all(cli: CommandLine, dsn: str, tmp_path: Path) -> None:
    """The address comes from a file, and is in no command line of the family."""
    file = tmp_path / "secret"
    file.write_text(f"{dsn}\n")
    supervisor = cli.worker("--processes=2", f"--dsn-file={file}", EVENTFLOW_DSN="")
    await supervisor.says("worker.started", times=2)
    family = children(supervisor.pid)
    assert len(family) == 2
    for pid in (supervisor.pid, *family):
        command_line = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
        assert "worker\0shop:flow" in command_line
        assert PASSWORD not in command_line
        assert "postgresql:" not in command_line

    os.kill(family[0], signal.SIGKILL)
    await supervisor.says("process.died code=-9")
    await supervisor.says("worker.started", times=3)
    replaced = children(supervisor.pid)
    assert family[1] in replaced
    assert family[0] not in replaced
    assert len(replaced) == 2

    assert await supervisor.stopped_by(signal.SIGTERM) == ExitCode.DONE
    assert supervisor.err.count("worker.stopped") == 2
    assert not any(map(alive, replaced))


@ON_LINUX
async def test_children_do_not_outlive_their_supervisor(cli: CommandLine) -> None:
    """Killed, it cannot tell them; the kernel does, and they stop in good order."""
    supervisor = cli.worker("--processes=2")
    await supervisor.says("worker.started", times=2)
    family = children(supervisor.pid)

    supervisor.process.kill()

    await until(lambda: not any(map(alive, family)), within=SECONDS)
    assert supervisor.err.count("worker.stopped") == 2


async def test_a_second_signal_kills_the_children(cli: CommandLine, dsn: str) -> None:
    supervisor = cli.worker("--processes=2", grace=60)
    await supervisor.says("worker.started", times=2)
    await schedule(dsn, Work(seconds=60))
    await supervisor.says("working")
    family = children(supervisor.pid)

    assert await supervisor.stopped_by(signal.SIGTERM, signal.SIGTERM) == ENDED_AT_ONCE
    await until(lambda: not any(map(alive, family)), within=SECONDS)


async def test_children_hear_a_signal_to_the_whole_group_once(cli: CommandLine, dsn: str, admin: Connection) -> None:
    """``systemctl stop`` signals every process of the service: that is not the impatience of a person."""
    supervisor = cli.worker("--processes=2", grace=60)
    await supervisor.says("worker.started", times=2)
    [job_id] = await schedule(dsn, Work(seconds=1.5))
    await supervisor.says("working")

    for pid in (supervisor.pid, *children(supervisor.pid)):
        os.kill(pid, signal.SIGTERM)

    assert await supervisor.ended() == ExitCode.DONE
    assert await admin.fetchval("SELECT state FROM eventflow.job_history WHERE id = $1", job_id.uuid) == "succeeded"


async def test_a_supervisor_gives_up_on_what_no_restart_mends(cli: CommandLine) -> None:
    cli.write("broken", "1 / 0\n")

    supervisor = cli.worker("--processes=2", target="broken:flow")

    assert await supervisor.ended() == ExitCode.FAILED
    assert "error: importing broken failed: ZeroDivisionError" in supervisor.err
    assert supervisor.err.count("process.started") == 2
