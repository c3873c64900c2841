"""Workers die under load; the others go on."""

import os
import signal
from datetime import timedelta
from pathlib import Path
from random import Random

from eventflow import JobState
from eventflow.postgres import Connection
from reliability.rig.transitions import Transitions
from tests.acceptance.shop import Record, flow
from tests.acceptance.workers import crew
from tests.support.waiting import eventually


async def test_jobs_of_a_killed_worker_start_again_within_two_seconds(
    dsn: str, admin: Connection, transitions: Transitions, tmp_path: Path
) -> None:
    """Under load, with another worker alive: nothing is lost, and nobody waits for a lease to run out."""
    numbers = range(300)
    with crew(dsn, tmp_path) as workers:
        victim, _survivor = await workers.add().started(), await workers.add().started()
        async with flow.open(dsn) as app:
            await app.commands.schedule_many([Record(number=n, milliseconds=200) for n in numbers])
            held = await eventually(lambda: _held_by(admin, victim.pid), within=10)
            killed_at = await admin.fetchval("SELECT clock_timestamp()")
            victim.kill()

            async def all_ran() -> bool:
                return await admin.fetchval("SELECT count(DISTINCT number) FROM effect") == len(numbers)

            await eventually(all_ran, within=20)
            await eventually(lambda: _nothing_left(admin), within=10)

        rescued = [t for t in await transitions.all() if t.job_id.uuid in held and t.at > killed_at]
        freed = [t for t in rescued if t.change == ("running", "waiting")]
        again = [t for t in rescued if t.change == ("waiting", "running")]
        assert freed, "the victim held nothing when it was killed: the test shows nothing"
        assert {t.job_id for t in again} >= {t.job_id for t in freed}
        assert max(t.at for t in freed) - killed_at < timedelta(seconds=2)


async def test_a_worker_that_is_killed_again_and_again_loses_nothing(
    dsn: str, admin: Connection, tmp_path: Path
) -> None:
    """Five kills at random moments, jobs due all the while, at once and later: all run, none early."""
    rng = Random(7)
    numbers = range(400)
    with crew(dsn, tmp_path) as workers:
        await workers.add().started()
        async with flow.open(dsn) as app:
            ids = [
                await app.commands.schedule(
                    Record(number=n, milliseconds=rng.randint(0, 50)), delay=timedelta(seconds=rng.uniform(0, 4))
                )
                for n in numbers
            ]
            for share in (0.1, 0.3, 0.5, 0.7, 0.9):
                await eventually(lambda share=share: _ran(admin, int(len(numbers) * share)), within=20)
                workers.workers[-1].kill()
                workers.add()
            await eventually(lambda: _ran(admin, len(numbers)), within=30)
            await eventually(lambda: _nothing_left(admin), within=20)
            records = [await app.jobs.get(job_id) for job_id in ids]
        assert {record.state for record in records if record} == {JobState.SUCCEEDED}
        assert all(records)
        early = await admin.fetchval(
            "SELECT count(*) FROM effect JOIN eventflow.job_history AS h ON (h.payload ->> 'number')::integer = number"
            " WHERE effect.at < h.due_at"
        )
        assert early == 0


async def test_a_stopped_process_that_goes_on_later_changes_nothing(
    dsn: str, admin: Connection, transitions: Transitions, tmp_path: Path
) -> None:
    """SIGSTOP beyond the lease: another worker runs its jobs, and its late completions change 0 rows."""
    lease = ("--lease-duration", "2", "--fence-after", "1.5", "--heartbeat-interval", "0.5")
    with crew(dsn, tmp_path) as workers:
        sleeper = await workers.add(*lease).started()
        async with flow.open(dsn) as app:
            job_id = await app.commands.schedule(Record(number=1, milliseconds=1500))
            await eventually(lambda: _held_by(admin, sleeper.pid))
            os.kill(sleeper.pid, signal.SIGSTOP)
            await workers.add(*lease).started()
            await eventually(lambda: _nothing_left(admin), within=20)
            os.kill(sleeper.pid, signal.SIGCONT)
            await eventually(lambda: _logged(sleeper.log, "worker.lease_lost"))
            assert sleeper.stop() == 0
            record = await app.jobs.get(job_id)
        assert record is not None
        assert (record.state, record.claim_no, record.crashes) == (JobState.SUCCEEDED, 2, 1)
        assert await transitions.states(job_id) == ["waiting", "running", "waiting", "running", "succeeded"]


async def _held_by(admin: Connection, pid: int) -> set[str]:
    rows = await admin.fetch(
        "SELECT running.id FROM eventflow.running JOIN eventflow.worker ON worker.id = worker_id WHERE pid = $1", pid
    )
    return {str(row["id"]) for row in rows}


async def _ran(admin: Connection, at_least: int) -> bool:
    return await admin.fetchval("SELECT count(DISTINCT number) FROM effect") >= at_least


async def _nothing_left(admin: Connection) -> bool:
    return not await admin.fetchval(
        "SELECT (SELECT count(*) FROM eventflow.job) + (SELECT count(*) FROM eventflow.running)"
    )


async def _logged(log: Path, event: str) -> bool:
    return event in log.read_text()
