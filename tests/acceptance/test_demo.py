"""The demo as a user runs it: its figures agree with each other, a lost job is noticed, Ctrl-C cleans up."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

RUN = "from eventflow.demo import run_demo; raise SystemExit(run_demo(jobs=150, seconds=3))"

RUN_AND_TAMPER = """
import asyncpg
from eventflow.demo import run_demo

async def tamper(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        "DELETE FROM eventflow.job WHERE id = (SELECT id FROM eventflow.job ORDER BY due_at DESC LIMIT 1)"
    )
    await connection.execute(
        "INSERT INTO demo.execution (source_id, worker_pid, started_at) "
        "SELECT source_id, 0, due_at - interval '1 microsecond' "
        "FROM demo.scheduled JOIN eventflow.job_history ON id = job_id LIMIT 1"
    )
    await connection.close()

raise SystemExit(run_demo(jobs=150, seconds=3, on_half_way=tamper))
"""


def start(script: str, temporary: Path) -> subprocess.Popen[str]:
    """The demo in a process of its own, which keeps its files in *temporary*."""
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TMPDIR": str(temporary), "COLUMNS": "100"},
    )


def figures(output: str) -> dict[str, list[float]]:
    """The numbers of each line of the table, by its words."""
    _, table = output.split("What happened, by the database\n")
    found: dict[str, list[float]] = {}
    for line in table.split("\n\n")[0].splitlines():
        label, numbers = re.split(r"\s{2,}", line.strip(), maxsplit=1)
        found[label] = [float(number) for number in re.findall(r"[\d.]+", numbers)]
    return found


def matching(found: dict[str, list[float]], pattern: str) -> tuple[int, list[float]]:
    """The number within the label that matches, and those beside it."""
    [(label, numbers)] = [item for item in found.items() if re.fullmatch(pattern, item[0])]
    return int(re.findall(r"\d+", label)[0]), numbers


def test_shows_figures_that_agree(tmp_path: Path) -> None:
    """All jobs are executed, none early, those that the worker held when it was killed by the next worker."""
    with start(RUN, tmp_path) as demo:
        output, _ = demo.communicate(timeout=60)

    assert demo.returncode == 0, output
    found = figures(output)
    assert found["scheduled"] == found["executed"] == [150]
    assert found["early"] == found["lost"] == [0]
    spared, (spared_p50, spared_p99) = matching(found, r"the \d+ due while a worker was alive")
    hit, (hit_p50, hit_p99) = matching(found, r"the \d+ the kill got in the way of")
    all_p50, all_p99 = found["lateness p50 / p99, all jobs"]
    asked_for_after, [new_worker] = matching(found, r"from kill to new worker \(asked for after \d+ ms\)")
    rescued, [first_rescued] = matching(found, r"from kill to first of \d+ rescued jobs")
    assert spared + hit == 150
    assert 0 <= found["executed twice or more"][0] <= rescued <= hit
    assert rescued > 0
    assert 0 <= spared_p50 <= spared_p99
    assert 0 <= hit_p50 <= hit_p99
    assert 0 <= all_p50 <= all_p99
    assert asked_for_after < new_worker < first_rescued
    assert "No job was lost, and none ran early." in output
    assert list(tmp_path.iterdir()) == []


def test_fails_if_a_job_is_lost_or_early(tmp_path: Path) -> None:
    """A job that vanishes and one a microsecond early are counted and told in sentences; the exit status is 1."""
    with start(RUN_AND_TAMPER, tmp_path) as demo:
        output, _ = demo.communicate(timeout=60)

    assert demo.returncode == 1, output
    found = figures(output)
    assert (found["scheduled"], found["executed"]) == ([150], [149])
    assert (found["lost"], found["early"]) == ([1], [1])
    assert "1 job was lost: scheduled, but never run to the end." in output
    assert "1 execution started before the due time." in output
    assert "No job was lost" not in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_cleans_up_when_interrupted(number: signal.Signals, tmp_path: Path) -> None:
    """After Ctrl-C, and the same when asked to end, no process and no file is left, and no traceback shown."""
    with start(RUN, tmp_path) as demo:
        assert demo.stdout is not None
        output = ""
        while "commands" not in output:
            line = demo.stdout.readline()
            assert line, output
            output += line
        demo.send_signal(number)
        rest, _ = demo.communicate(timeout=30)

    assert demo.returncode == 130
    assert rest.splitlines()[-1] == "Stopped; nothing is left running."
    assert "Traceback" not in rest
    for pid in re.findall(r"(?:worker|producer) (\d+)", output):
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
    assert list(tmp_path.iterdir()) == []
