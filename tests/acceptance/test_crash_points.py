"""A process dies by SIGKILL at every failpoint in turn; afterwards everything has happened."""

import os
import re
import signal
import sys
from collections import Counter
from pathlib import Path

import anyio
import pytest

from eventflow.postgres import Connection
from tests.acceptance.failpoints import SWEPT
from tests.acceptance.shop import Doomed, Flaky, Parent, Record, flow
from tests.acceptance.workers import ROOT, Crew, crew
from tests.support.waiting import eventually, until

NUMBERS = range(12)
KILLED = -signal.SIGKILL


def test_every_failpoint_is_swept() -> None:
    """A failpoint that nobody passes in these tests would be a crash that nobody tried."""
    found = {
        name
        for path in (ROOT / "eventflow").rglob("*.py")
        for name in re.findall(r'\bfailpoint\("([^"]+)"\)', path.read_text())
    }
    assert found == set(SWEPT)


@pytest.mark.parametrize("name", [name for name, who in SWEPT.items() if who == "worker"])
async def test_crash_of_a_worker_loses_nothing(name: str, dsn: str, admin: Connection, tmp_path: Path) -> None:
    """All jobs end as they should, follow-ups exist exactly once, and nothing stays claimed."""
    with crew(dsn, tmp_path) as workers:
        doomed = await workers.add(failpoints=f"{name}=kill").started()
        await _schedule_all()
        await until(lambda: doomed.process.poll() == KILLED)
        await _everything_happens(admin, workers)


@pytest.mark.parametrize("name", [name for name, who in SWEPT.items() if who == "rescuer"])
async def test_crash_of_a_rescuer_loses_nothing(name: str, dsn: str, admin: Connection, tmp_path: Path) -> None:
    """The same for a worker that dies while it rescues the jobs of another that died."""
    with crew(dsn, tmp_path) as workers:
        victim = await workers.add(failpoints="job.starting=kill@3").started()
        await _schedule_all()
        await until(lambda: victim.process.poll() == KILLED)
        rescuer = workers.add(failpoints=f"{name}=kill")
        await until(lambda: rescuer.process.poll() == KILLED)
        await _everything_happens(admin, workers)


@pytest.mark.parametrize("name", [name for name, who in SWEPT.items() if who == "producer"])
async def test_crash_of_a_producer_leaves_all_or_nothing(
    name: str, dsn: str, admin: Connection, tmp_path: Path
) -> None:
    """What was committed runs, although nobody was notified of it; what was not does not exist."""
    with crew(dsn, tmp_path) as workers:
        await workers.add().started()
        producer = await anyio.run_process(
            [sys.executable, "-m", "tests.acceptance.producer", str(len(NUMBERS))],
            cwd=ROOT,
            env={**os.environ, "EVENTFLOW_FAILPOINTS": f"{name}=kill"},
            check=False,
        )
        assert producer.returncode == KILLED, producer.stderr
        expected = 0 if name == "insert.sending" else len(NUMBERS)

        async def ended() -> bool:
            return await admin.fetchval("SELECT count(*) FROM eventflow.job_history") == expected

        await eventually(ended, within=5)
        assert await _nothing_left(admin)


async def _schedule_all() -> None:
    async with flow.open() as app:
        await app.commands.schedule_many([Record(number=n) for n in NUMBERS])
        await app.jobs.schedule_many([Parent(number=n) for n in NUMBERS])
        await app.jobs.schedule_many([Flaky(number=n) for n in NUMBERS])
        await app.jobs.schedule_many([Doomed(number=n) for n in NUMBERS])


async def _everything_happens(admin: Connection, workers: Crew) -> None:
    await workers.add().started()

    await eventually(lambda: _nothing_left(admin), within=20)
    ended = Counter(
        (row["name"], row["state"])
        for row in await admin.fetch(
            "SELECT name, state FROM eventflow.job_history UNION ALL SELECT name, 'dead' FROM eventflow.dead_letter"
        )
    )
    each = len(NUMBERS)
    assert ended == {
        ("PublishCommand:Record", "succeeded"): each,
        ("Parent", "succeeded"): each,
        ("Child", "succeeded"): each,
        ("Flaky", "succeeded"): each,
        ("Doomed", "dead"): each,
    }
    effects = await admin.fetch("SELECT kind, count(DISTINCT number) AS numbers FROM effect GROUP BY kind")
    assert {row["kind"]: row["numbers"] for row in effects} == dict.fromkeys(
        ("record", "parent", "child", "flaky", "doomed"), each
    )


async def _nothing_left(admin: Connection) -> bool:
    waiting = "SELECT (SELECT count(*) FROM eventflow.job) + (SELECT count(*) FROM eventflow.running)"
    return not await admin.fetchval(waiting)
