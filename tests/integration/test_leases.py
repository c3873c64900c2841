"""Workers that fall silent or are closed by others: their jobs start again elsewhere, and they go on anew."""

from uuid import uuid4

from eventflow import JobState, WorkerId, WorkerSettings
from reliability.rig.transitions import Transitions
from tests.support.journal import Hold, Journal, Note, ended, flow_of, in_state, query
from tests.support.waiting import eventually

SHORT_LEASE = WorkerSettings(heartbeat_interval=0.1, fence_after=0.3, lease_duration=0.8, tick_interval=0.2)


async def abandon_a_job(admin_dsn: str, *, session: bool = False) -> WorkerId:
    """Give the one waiting job to a worker that does not exist; with a *session* that nobody holds."""
    worker = uuid4()
    await query(
        admin_dsn,
        """
        INSERT INTO eventflow.worker (id, host, pid, version, concurrency, session_key, session_server)
        SELECT $1, 'elsewhere', 1, '1.0', 1, CASE WHEN $2 THEN 4711 END, CASE WHEN $2 THEN
            (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint::text
                || '/' || (SELECT timeline_id FROM pg_control_checkpoint())
            END
        """,
        worker,
        session,
    )
    await query(
        admin_dsn,
        """
        WITH taken AS (DELETE FROM eventflow.job RETURNING *)
        INSERT INTO eventflow.running (
            id, worker_id, claimed_at, queue_id, lane, priority, due_at, ready_at, created_at, name, version, payload,
            headers, attempt, crashes, claim_no
        ) SELECT id, $1, now(), queue_id, lane, priority, due_at, ready_at, created_at, name, version, payload,
            headers, attempt + 1, crashes, claim_no + 1
        FROM taken
        """,
        worker,
    )
    return WorkerId.of(str(worker))


async def test_silent_workers_jobs_are_rescued(dsn: str, admin_dsn: str, journal: Journal) -> None:
    """Its beat stands still for the lease's duration: the job runs elsewhere, as the same attempt, a crash noted."""
    async with flow_of(journal).open(dsn) as app:
        job_id = await app.jobs.schedule(Note(label="abandoned"))
        dead = await abandon_a_job(admin_dsn)
        async with app.worker(SHORT_LEASE):
            record = await ended(app, job_id)

    assert (record.state, record.attempt, record.claim_no, record.crashes) == (JobState.SUCCEEDED, 1, 2, 1)
    [crash] = record.past_attempts
    assert (crash["worker"], crash["outcome"]) == (dead, "worker_died")


async def test_worker_whose_session_is_gone_is_rescued_soon(dsn: str, admin_dsn: str, journal: Journal) -> None:
    """The fast way: its lock is missing in two looks. Long before the lease of 15 s ends."""
    async with flow_of(journal).open(dsn) as app:
        job_id = await app.jobs.schedule(Note(label="abandoned"))
        await abandon_a_job(admin_dsn, session=True)
        async with app.worker():
            record = await ended(app, job_id, within=5.0)

    assert (record.state, record.crashes) == (JobState.SUCCEEDED, 1)


async def test_worker_that_lives_is_left_alone(dsn: str, admin_dsn: str, journal: Journal) -> None:
    """Two workers with short leases, one holding a job for several of them: nobody is rescued."""
    flow = flow_of(journal)
    async with flow.open(dsn) as app, flow.open(dsn) as elsewhere, app.worker(SHORT_LEASE):
        job_id = await app.jobs.schedule(Hold(label="held"))
        await journal.until_started("held")
        async with elsewhere.worker(SHORT_LEASE):

            async def beats() -> bool:
                rows = await query(admin_dsn, "SELECT beat FROM eventflow.worker")
                return len(rows) == 2 and min(row["beat"] for row in rows) > 15

            await eventually(beats)
        journal.gate.set()
        record = await ended(app, job_id)

    assert (record.claim_no, record.crashes) == (1, 0)


async def test_closed_worker_cancels_its_handlers_and_goes_on_anew(
    dsn: str, admin_dsn: str, journal: Journal, transitions: Transitions
) -> None:
    """Somebody took its jobs: what it still does for them is without effect, and it continues under a new identity."""
    async with flow_of(journal).open(dsn) as app, app.worker(SHORT_LEASE):
        job_id = await app.jobs.schedule(Hold(label="held"))
        first = await in_state(app, job_id, JobState.RUNNING)
        await journal.until_started("held")
        await close_all_workers(admin_dsn)
        await eventually(lambda: _started_again(journal))
        journal.gate.set()
        record = await ended(app, job_id)

    assert journal.cancelled == ["held"]
    assert journal.finished == ["held"]
    assert record.worker_id != first.worker_id
    assert (record.attempt, record.claim_no) == (1, 2)
    assert await transitions.states(job_id) == ["waiting", "running", "waiting", "running", "succeeded"]


async def _started_again(journal: Journal) -> bool:
    return len(journal.runs) == 2


async def close_all_workers(admin_dsn: str) -> None:
    """What a rescue does, to workers that are alive and well."""
    await query(admin_dsn, "UPDATE eventflow.worker SET closed_at = now()")
    await query(
        admin_dsn,
        """
        WITH ended AS (DELETE FROM eventflow.running RETURNING *)
        INSERT INTO eventflow.job (
            id, queue_id, priority, due_at, ready_at, created_at, name, version, payload, headers, attempt, claim_no
        ) SELECT id, queue_id, priority, due_at, clock_timestamp(), created_at, name, version, payload, headers,
            attempt - 1, claim_no
        FROM ended
        """,
    )
