"""The parts of the command line that need no process and no database."""

import logging
import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from random import Random

import anyio
import anyio.lowlevel
import msgspec
import pytest
from cyclopts import App

from eventflow import DatabaseUnavailableError, ManualClock
from eventflow.cli import app as app_module
from eventflow.cli.address import ADDRESS
from eventflow.cli.app import CommandLine
from eventflow.cli.exits import ExitCode, UsageError
from eventflow.cli.jobs import parse_job_id
from eventflow.cli.loading import FlowImportError, load_flow
from eventflow.cli.logs import LineFormatter
from eventflow.cli.supervisor import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, SETTLED_SECONDS, Supervisor
from eventflow.cli.terminal import Mask, Terminal, printable
from eventflow.cli.worker import WorkerOptions
from eventflow.jobs import WorkerSettings
from eventflow.supervision import background_tasks
from tests.support.waiting import until

DSN = "postgresql://shop:s3cr%2Ft@db.example:5432/orders"


class Refused(msgspec.Struct, frozen=True):
    """A command line that makes no sense, and what its one line must say."""

    arguments: str
    says: str
    address: str = DSN


USAGE_ERRORS = [
    Refused("wrk", "wrk"),
    Refused("migrate --bogus", "--bogus"),
    Refused("migrate --check --sql", "exclude each other"),
    Refused("migrate --schema Robert;--", "schema"),
    Refused("migrate", "EVENTFLOW_DSN", address=""),
    Refused("migrate --dsn-file /nonexistent/dsn", "/nonexistent/dsn: No such file"),
    Refused("migrate", "not an address", address="memory:"),
    Refused("migrate", "not an address", address="host=db user=shop password=s3cret"),
    Refused("jobs list --state sleeping", "sleeping"),
    Refused("jobs list --limit 0", "limit"),
    Refused("jobs show 17", "'17' is not the id of a job"),
    Refused("migrate --dsn postgresql://shop:s3cret@db/orders", "--dsn"),
    Refused("migrate postgresql://shop:s3cret@db/orders", "***"),
    Refused("migrate --dsn-file=postgresql://shop:s3cret@db/orders", "shop:***@db"),
    Refused("worker postgresql://shop:s3cret@db/orders", "no module 'postgresql'"),
    Refused("worker", "MODULE:FLOW"),
    Refused("worker shop:flow", "EVENTFLOW_DSN", address=""),
    Refused("worker shop:flow --concurrency 0", "concurrency"),
    Refused("worker shop:flow --processes 0", "processes"),
    Refused("worker shop:flow --grace-period=-1", "grace"),
    Refused("worker shop:flow --lease-duration 1", "fence_after < lease_duration must hold"),
    Refused("worker shop:flow --log-level loud", "loud"),
]


@pytest.mark.parametrize("refused", USAGE_ERRORS, ids=lambda r: f"{r.arguments} {r.address[:6]}")
def test_wrong_usage_exits_with_2_and_says_what_is_wrong(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(ADDRESS, refused.address)

    code = app_module.run(refused.arguments.split())

    output = capsys.readouterr()
    assert code == ExitCode.USAGE
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert refused.says in output.err
    assert "s3cr" not in output.err + output.out


@pytest.mark.parametrize(
    "command", ["", "demo", "dev", "migrate", "worker", "jobs", "jobs list", "jobs show", "jobs cancel"]
)
def test_help_fits_80_columns_and_ends_with_the_exit_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = app_module.run([*command.split(), "--help"])

    lines = capsys.readouterr().out.splitlines()
    assert code == ExitCode.DONE
    assert "Exit codes:" in lines
    assert max(map(len, lines)) <= 80
    assert not any("--dsn " in line for line in lines)


def test_demo_passes_its_options_and_its_exit_code_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, float]] = []

    def run_demo(*, jobs: int, seconds: float) -> int:
        asked.append((jobs, seconds))
        return ExitCode.FAILED

    monkeypatch.setattr("eventflow.demo.run_demo", run_demo)

    assert app_module.run(["demo", "--jobs=20", "--seconds=1.5"]) == ExitCode.FAILED
    assert asked == [(20, 1.5)]


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert app_module.run(["--version"]) == ExitCode.DONE
    assert capsys.readouterr().out == f"{version('eventflow-py')}\n"


def test_a_file_with_the_address_is_preferred_to_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(ADDRESS, DSN)
    file = tmp_path / "dsn"
    file.write_text("mysql://shop:s3cret@db/orders\n")

    assert app_module.run(["migrate", "--dsn-file", str(file)]) == ExitCode.USAGE
    assert f"what {file} holds is not an address" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"cannot reach {DSN}!", "cannot reach ***!"),
        ("tried s3cr%2Ft and s3cr/t", "tried *** and ***"),
        ("shop:s3cr%2Ft@db.example", "shop:***@db.example"),
        ("the shop of orders", "the shop of orders"),
    ],
)
def test_addresses_and_passwords_are_masked(text: str, masked: str) -> None:
    mask = Mask()
    mask.hide(DSN)

    assert mask(text) == masked


def test_a_password_in_the_query_of_an_address_is_masked() -> None:
    mask = Mask()
    mask.hide("postgresql://db/orders?user=shop&password=s3cret")

    assert mask("the password is s3cret") == "the password is ***"


def test_a_password_that_is_the_users_name_does_not_blank_the_log() -> None:
    mask = Mask()
    mask.hide("postgresql://eventflow:eventflow@db/eventflow")

    assert (
        mask("worker.started in eventflow, eventflow:eventflow@db") == "worker.started in eventflow, eventflow:***@db"
    )


def record(name: str = "eventflow.worker", message: str = "worker.started", **values: object) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"name": name, "msg": message, "levelname": "INFO", "created": 0.0, "process": 7} | values
    )


def test_a_log_line_is_time_level_process_event_and_values() -> None:
    line = LineFormatter(str).format(record(worker_id="worker-1", queues=("a", "b"), reason='said "no"', empty=""))

    assert line == (
        "1970-01-01T00:00:00.000Z INFO    7 worker.started "
        'worker_id=worker-1 queues="(\'a\', \'b\')" reason="said \\"no\\"" empty=""'
    )


def test_a_value_cannot_start_a_line_of_its_own() -> None:
    line = LineFormatter(str).format(record(reason="one\n1970-01-01 two"))

    assert line.endswith('reason="one\\n1970-01-01 two"')


def test_lines_of_other_libraries_say_whose_they_are() -> None:
    assert LineFormatter(str).format(record("shop.mail", "sent")).endswith(" shop.mail: sent")


def test_tracebacks_are_shown_masked_except_of_an_absent_database() -> None:
    mask = Mask()
    mask.hide(DSN)

    def line(error: Exception) -> str:
        return LineFormatter(mask).format(record(exc_info=(type(error), error, None)))

    assert line(ValueError(DSN)).endswith("\nValueError: ***")
    assert "\n" not in line(DatabaseUnavailableError("refused"))


def test_control_characters_are_spelled_out() -> None:
    assert printable("a\x1b[31m\r\tb\nc é") == "a\\x1b[31m\\r\\tb\nc é"


def test_job_ids_are_known_with_and_without_their_prefix() -> None:
    uuid = "01890a5d-ac96-774b-bcce-b302099a8057"

    assert parse_job_id(uuid) == parse_job_id(f"job-{uuid}")
    with pytest.raises(UsageError):
        parse_job_id(f"worker-{uuid}")


def test_a_child_of_the_supervisor_gets_the_same_options() -> None:
    """Every option that a worker has, but the number of processes and where addresses are."""
    options = WorkerOptions(
        app_dir=Path("/srv/my app"),
        queues=("a,b", "c"),
        concurrency=7,
        log_level="debug",
        grace_period=1.5,
        clean_up_period=2.5,
        heartbeat_interval=0.25,
        fence_after=0.5,
        lease_duration=0.75,
        tick_interval=0.125,
    )
    app: App = CommandLine(Terminal()).app()

    _, bound, _ = app.parse_args(["worker", "shop:flow", *options.arguments()])

    assert bound.arguments["options"] == options
    assert options.settings() == WorkerSettings(
        concurrency=7,
        queues=("a", "b", "c"),
        grace_period=1.5,
        heartbeat_interval=0.25,
        fence_after=0.5,
        lease_duration=0.75,
        tick_interval=0.125,
    )


@pytest.fixture
def app_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for modules, which are forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (tmp_path / "cli_shop.py").write_text(
        "from eventflow import EventFlow\n"
        "class parts:\n    flow = EventFlow('parts')\n"
        "flow = EventFlow('shop')\n"
        "def make(): return flow\n"
    )
    (tmp_path / "cli_broken.py").write_text("def boom():\n    return 1 / 0\nboom()\n")
    (tmp_path / "cli_needy.py").write_text("import no_such_library\n")
    return tmp_path


@pytest.mark.parametrize("target", ["cli_shop:flow", "cli_shop:parts.flow"])
def test_a_flow_is_found(target: str, app_dir: Path) -> None:
    assert load_flow(target, app_dir).name in ("shop", "parts")


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("cli_shop", "does not name a flow; say MODULE:FLOW"),
        ("no_such_module:flow", "no module 'no_such_module' in "),
        ("no_such.module:flow", "no module 'no_such' in "),
        ("cli_shop:flo", "cli_shop has no 'flo'; it has cli_shop:flow"),
        ("cli_shop:make", "is not an EventFlow but of type function; it has cli_shop:flow"),
        ("cli_shop:parts", "is not an EventFlow but the class parts"),
    ],
)
def test_what_is_not_a_flow_is_named(target: str, says: str, app_dir: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_flow(target, app_dir)

    assert says in str(caught.value)


def test_a_module_that_fails_is_not_taken_for_missing(app_dir: Path) -> None:
    with pytest.raises(FlowImportError) as caught:
        load_flow("cli_broken:flow", app_dir)
    assert str(caught.value) == "importing cli_broken failed: ZeroDivisionError: division by zero"
    assert caught.value.where is not None
    assert caught.value.where.tb_frame.f_code.co_filename == str(app_dir / "cli_broken.py")

    with pytest.raises(FlowImportError, match="no_such_library"):
        load_flow("cli_needy:flow", app_dir)


class FakeChild:
    """A process that ends when the test says so."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.terminated = self.killed = False
        self._ended = anyio.Event()
        self._code = 0

    async def wait(self) -> int:
        await self._ended.wait()
        return self._code

    def end(self, code: int) -> None:
        self._code = code
        self._ended.set()

    def terminate(self) -> None:
        self.terminated = True
        if self._ended.is_set():
            raise ProcessLookupError

    def kill(self) -> None:
        self.killed = True


class Family:
    """A supervisor, the children it started, and its exit code."""

    def __init__(self, processes: int, clock: ManualClock, *, failures: int = 0) -> None:
        self.children: list[FakeChild] = []
        self.attempts = 0
        self.code: int | None = None
        self._failures = failures
        self.supervisor = Supervisor(self._start, processes=processes, clock=clock, rng=Random(1))

    async def _start(self) -> FakeChild:
        self.attempts += 1
        if self.attempts <= self._failures:
            raise OSError("no memory")
        child = FakeChild(100 + len(self.children))
        self.children.append(child)
        return child

    async def run(self) -> None:
        self.code = await self.supervisor.run()

    async def grow(self, number: int) -> None:
        await until(lambda: len(self.children) == number, within=5)


async def settle() -> None:
    """Let every task do what it can."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


async def test_a_dead_child_is_replaced_after_a_pause_that_grows() -> None:
    clock = ManualClock()
    family = Family(1, clock)
    async with background_tasks() as group:
        group.start_soon(family.run)
        for deaths in range(1, 10):
            await family.grow(deaths)
            family.children[-1].end(-signal.SIGKILL)
            await settle()
            longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (deaths - 1))
            clock.advance(longest * 0.49)
            await settle()
            assert len(family.children) == deaths, "it came back before half of the longest pause"
            clock.advance(longest * 0.51)
        await family.grow(10)
        clock.advance(SETTLED_SECONDS)
        family.children[-1].end(70)
        await settle()
        clock.advance(FIRST_PAUSE_SECONDS)
        await family.grow(11)
        family.supervisor.stop()
        family.children[-1].end(0)
    assert family.code == ExitCode.DONE


@pytest.mark.parametrize("code", [ExitCode.FAILED, ExitCode.USAGE])
async def test_an_error_that_all_would_meet_ends_all(code: int) -> None:
    family = Family(2, ManualClock())
    async with background_tasks() as group:
        group.start_soon(family.run)
        await family.grow(2)
        family.children[0].end(code)
        await until(lambda: family.children[1].terminated)
        family.children[1].end(0)
    assert family.code == code
    assert len(family.children) == 2


async def test_children_that_fail_together_end_the_supervisor_once() -> None:
    """One has ended already when it is told to, because of the other."""
    family = Family(2, ManualClock())
    async with background_tasks() as group:
        group.start_soon(family.run)
        await family.grow(2)
        for child in family.children:
            child.end(ExitCode.FAILED)
    assert family.code == ExitCode.FAILED


@pytest.mark.parametrize(
    ("code", "ends_with"),
    [(0, 0), (-signal.SIGTERM, 0), (ExitCode.FORCED, ExitCode.FORCED), (-signal.SIGKILL, ExitCode.FORCED), (70, 70)],
)
async def test_the_exit_code_says_whether_all_stopped_in_good_order(code: int, ends_with: int) -> None:
    family = Family(2, ManualClock())
    async with background_tasks() as group:
        group.start_soon(family.run)
        await family.grow(2)
        family.supervisor.stop()
        assert all(child.terminated for child in family.children)
        family.children[0].end(code)
        family.children[1].end(0)
    assert family.code == ends_with


async def test_a_process_that_cannot_be_started_is_tried_again() -> None:
    clock = ManualClock()
    family = Family(1, clock, failures=1)
    async with background_tasks() as group:
        group.start_soon(family.run)
        await until(lambda: family.attempts == 1)
        await settle()
        clock.advance(FIRST_PAUSE_SECONDS)
        await family.grow(1)
        family.supervisor.stop()
        family.children[0].end(0)
    assert family.code == ExitCode.DONE


async def test_a_stop_during_the_pause_is_not_waited_for() -> None:
    family = Family(1, ManualClock())
    async with background_tasks() as group:
        group.start_soon(family.run)
        await family.grow(1)
        family.children[0].end(70)
        await settle()
        family.supervisor.stop()
    assert family.code == ExitCode.DONE


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (DatabaseUnavailableError("refused"), ExitCode.FAILED, "error: refused\n"),
        (UsageError("no"), ExitCode.USAGE, "error: no\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_own_errors_are_one_line(
    error: BaseException, code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app_module.exit_code(_raising(error), Terminal()) == code
    assert capsys.readouterr().err == says


def test_a_bug_shows_its_traceback_without_the_address(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    terminal.mask.hide(DSN)

    assert app_module.exit_code(_raising(RuntimeError(f"lost {DSN}")), terminal) == ExitCode.CRASHED
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert shown.endswith("RuntimeError: lost ***\n")


def _raising(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command
