"""The worker as a user runs it: signals, grace, what is wrong at the start."""

import signal
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from eventflow import Job
from eventflow.cli.exits import ExitCode
from eventflow.devdb import EmbeddedPostgres, cached_template
from eventflow.postgres import Connection
from tests.acceptance.cli.command_line import SECONDS, SHOP, Blocking, CommandLine, Stubborn, Work, schedule
from tests.support.waiting import eventually, until


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
