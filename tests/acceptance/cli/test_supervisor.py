"""Several worker processes under one command."""

import os
import signal
import subprocess
from pathlib import Path

from eventflow.cli.exits import ExitCode
from eventflow.postgres import Connection
from tests.acceptance.cli.command_line import ENDED_AT_ONCE, ON_LINUX, SECONDS, CommandLine, Work, schedule
from tests.support.postgres import PASSWORD
from tests.support.waiting import until


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
