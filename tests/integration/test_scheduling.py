"""Scheduling through the public API: alone, with other writes, many at once, and from SQL."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta

import anyio
import asyncpg
import pytest

from eventflow import InvalidScheduleError, JobState, RetryPolicy, WorkerSettings
from eventflow.jobs import Notify
from reliability.rig.transitions import Transitions
from tests.support.journal import Hold, Journal, Note, count_jobs, duplicates, ended, flow_of, query


class RollBackError(Exception):
    """Ends a transaction."""


async def test_scheduled_job_runs_on_a_worker(dsn: str, journal: Journal, transitions: Transitions) -> None:
    """A job goes from waiting to running to succeeded, each in a transaction of its own."""
    async with flow_of(journal).open(dsn) as app, app.worker():
        job_id = await app.jobs.schedule(Note(label="a"), queue="mail", tags=["t"], key="k")
        record = await ended(app, job_id)

    assert (journal.labels(), journal.ids()) == (["a"], [job_id])
    assert (record.state, record.queue, record.tags, record.key) == (JobState.SUCCEEDED, "mail", ("t",), "k")
    assert (record.attempt, record.claim_no, list(record.past_attempts)) == (1, 1, [])
    steps = await transitions.of(job_id)
    assert [step.change for step in steps] == [(None, "waiting"), ("waiting", "running"), ("running", "succeeded")]
    assert len({step.transaction for step in steps}) == 3
    assert steps[1].worker_id == steps[2].worker_id == record.worker_id


async def test_worker_in_another_process_is_woken(dsn: str, journal: Journal, only_when_woken: WorkerSettings) -> None:
    """A worker that shares nothing with the scheduling application but the database is notified."""
    flow = flow_of(journal)
    async with flow.open(dsn) as working, working.worker(only_when_woken), flow.open(dsn) as scheduling:
        await ended(scheduling, await scheduling.jobs.schedule(Note()))
        await ended(scheduling, await scheduling.jobs.schedule(Note()))


async def test_rolled_back_transaction_leaves_no_job(dsn: str, admin_dsn: str, journal: Journal) -> None:
    """Whatever was scheduled in it, one by one or by COPY, never was."""
    async with flow_of(journal).open(dsn) as app, app.worker():
        with suppress(RollBackError):
            async with app.transaction() as connection:
                await app.jobs.schedule(Note(), connection=connection)
                await app.jobs.schedule_many([Note() for _ in range(400)], connection=connection)
                raise RollBackError
        await ended(app, await app.jobs.schedule(Note(label="after")))

    assert journal.labels() == ["after"]
    assert await count_jobs(admin_dsn) == 1


@pytest.mark.parametrize("count", [1, 400])
async def test_committed_transaction_runs_its_jobs(
    dsn: str, journal: Journal, count: int, only_when_woken: WorkerSettings
) -> None:
    """They exist with the commit, not before, and a worker is woken at once, also one elsewhere."""
    flow = flow_of(journal)
    async with flow.open(dsn) as working, working.worker(only_when_woken), flow.open(dsn) as app:
        async with app.transaction() as connection:
            ids = await app.jobs.schedule_many([Note() for _ in range(count)], connection=connection)
            assert await app.jobs.get(ids[0]) is None
        await journal.until_runs(count)
        await ended(app, ids[-1])

    assert sorted(journal.ids()) == sorted(ids)


async def test_jobs_share_the_transaction_with_other_writes(dsn: str, admin_dsn: str, journal: Journal) -> None:
    """The row of the user's and the job appear in the same transaction."""
    await query(admin_dsn, "CREATE TABLE public.orders (number integer, written_by xid8)")
    await query(admin_dsn, "GRANT INSERT ON public.orders TO test_worker")
    watched = Transitions(admin_dsn)
    await watched.install()
    async with flow_of(journal).open(dsn) as app, app.transaction() as connection:
        await connection.execute("INSERT INTO public.orders VALUES (1, pg_current_xact_id())")
        job_id = await app.jobs.schedule(Note(), connection=connection)
    [order] = await query(admin_dsn, "SELECT written_by::text::bigint AS transaction FROM public.orders")
    [inserted] = await watched.of(job_id)

    assert inserted.transaction == order["transaction"]


async def test_callers_own_connection_is_found_by_the_sweep(dsn: str, journal: Journal) -> None:
    """Nobody knows of the commit; the workers' look once a second finds the job."""
    connection = await asyncpg.connect(dsn)
    try:
        async with flow_of(journal).open(dsn) as app, app.worker():
            async with connection.transaction():
                job_id = await app.jobs.schedule(Note(), connection=connection)
            await ended(app, job_id, within=5.0)
    finally:
        await connection.close()


async def test_callers_own_connection_can_wake_with_its_commit(
    dsn: str, journal: Journal, only_when_woken: WorkerSettings
) -> None:
    """``notify="in_transaction"``: no sweep is needed."""
    connection = await asyncpg.connect(dsn)
    try:
        async with flow_of(journal).open(dsn) as app, app.worker(only_when_woken):
            async with connection.transaction():
                job_id = await app.jobs.schedule(Note(), connection=connection, notify="in_transaction")
            await ended(app, job_id)
    finally:
        await connection.close()


@pytest.mark.parametrize("notify", [False, True])
async def test_plain_sql_schedules(
    dsn: str, producer_dsn: str, journal: Journal, notify: bool, only_when_woken: WorkerSettings
) -> None:
    """``select eventflow.schedule_job(...)`` of a producer: found by the sweep, or at once if it notifies."""
    settings = only_when_woken if notify else WorkerSettings()
    async with flow_of(journal).open(dsn) as app, app.worker(settings):
        await ended(app, await app.jobs.schedule(Note(label="first")))  # the worker has begun to listen
        await query(
            producer_dsn,
            """SELECT eventflow.schedule_job('Note', 1, '{"label": "sql"}', queue => 'mail', notify => $1)""",
            notify,
        )
        await journal.until_started("sql")


async def test_plain_sql_schedules_for_later(dsn: str, producer_dsn: str, admin_dsn: str) -> None:
    """A delay, or an instant; not both, and no negative one."""
    await query(producer_dsn, "SELECT eventflow.schedule_job('Note', 1, '{}', delay => '1 hour', tags => '{a,b}')")
    await query(producer_dsn, "SELECT eventflow.schedule_job('Note', 1, '{}', due_at => now() + interval '2 hours')")
    for wrong in ("delay => '1 hour', due_at => now()", "delay => '-1 second'", "due_at => '1999-01-01'"):
        with pytest.raises(asyncpg.PostgresError):
            await query(producer_dsn, f"SELECT eventflow.schedule_job('Note', 1, '{{}}', {wrong})")

    rows = await query(admin_dsn, "SELECT due_at - created_at AS delay, ready_at = due_at AS later FROM eventflow.job")
    assert all(row["later"] for row in rows)
    assert sorted(round(row["delay"] / timedelta(hours=1)) for row in rows) == [1, 2]


@pytest.mark.parametrize("count", [0, 3, 1000])
async def test_many_jobs_at_once(dsn: str, admin_dsn: str, journal: Journal, count: int) -> None:
    """Ids are in the order of the jobs; each runs once. From a few hundred on they travel by COPY."""
    jobs = [Note(label=str(number)) for number in range(count)]
    async with flow_of(journal).open(dsn) as app, app.worker():
        ids = await app.jobs.schedule_many(iter(jobs), queue="bulk", tags=["x"], retry=RetryPolicy(max_attempts=2))
        await journal.until_runs(count)

    assert {run.job_id: run.label for run in journal.runs} == {
        job_id: job.label for job_id, job in zip(ids, jobs, strict=True)
    }
    assert duplicates(journal.ids()) == []
    assert await count_jobs(admin_dsn) == count


async def test_concurrent_calls_share_commits(dsn: str, admin_dsn: str, journal: Journal) -> None:
    """Single calls at the same time travel together; each gets its own job."""
    async with flow_of(journal).open(dsn) as app, app.worker(), anyio.create_task_group() as group:
        for number in range(200):
            group.start_soon(app.jobs.schedule, Note(label=str(number)))
        await journal.until_runs(200)

    assert sorted(journal.labels(), key=int) == [str(number) for number in range(200)]
    [row] = await query(admin_dsn, "SELECT count(DISTINCT created_at) AS commits FROM eventflow.job_history")
    assert row["commits"] < 100


async def test_options_of_the_call_and_of_the_registration(dsn: str, journal: Journal) -> None:
    """A call's queue and priority replace the registration's; without them, those hold."""
    flow = flow_of(journal)

    @flow.job(queue="mail", priority=3)
    class Mail(Note):
        pass

    async with flow.open(dsn) as app:
        plain = await app.jobs.get(await app.jobs.schedule(Mail()))
        other = await app.jobs.get(await app.jobs.schedule(Mail(), queue="fast", priority=0))

    assert plain is not None
    assert other is not None
    assert (plain.queue, plain.priority) == ("mail", 3)
    assert (other.queue, other.priority) == ("fast", 0)


async def test_worker_serves_only_its_queues(dsn: str, journal: Journal) -> None:
    """Jobs of other queues wait for another worker."""
    async with flow_of(journal).open(dsn) as app:
        other = await app.jobs.schedule(Note(label="other"), queue="other")
        async with app.worker(WorkerSettings(queues=("mail",))):
            await ended(app, await app.jobs.schedule(Note(label="mail"), queue="mail"))
        record = await app.jobs.get(other)

    assert journal.labels() == ["mail"]
    assert record is not None
    assert (record.state, record.claim_no) == (JobState.WAITING, 0)


async def test_urgent_jobs_go_first(dsn: str, journal: Journal) -> None:
    """One slot, jobs of all priorities waiting: 0 runs first, 3 last, equals in the order they came."""
    async with flow_of(journal).open(dsn) as app:
        for priority in (3, 1, 0, 2, 0, 1):
            await app.jobs.schedule(Note(label=str(priority)), priority=priority)
        async with app.worker(WorkerSettings(concurrency=1, max_prefetch=0)):
            await journal.until_runs(6)

    assert journal.labels() == ["0", "0", "1", "1", "2", "3"]


@pytest.mark.parametrize("notify", ["in_transaction", "sometimes"])
async def test_notify_needs_a_connection_and_a_known_word(dsn: str, journal: Journal, notify: Notify) -> None:
    """What cannot be honoured is refused."""
    async with flow_of(journal).open(dsn) as app:
        with pytest.raises(InvalidScheduleError):
            await app.jobs.schedule(Hold(), notify=notify)


async def test_find_shows_jobs_of_all_tables(dsn: str, journal: Journal) -> None:
    """Waiting, running and ended jobs are found by what they are."""
    async with flow_of(journal).open(dsn) as app:
        waiting = await app.jobs.schedule(Note(), at=datetime(2100, 1, 1, tzinfo=UTC), queue="later")
        async with app.worker():
            done = await app.jobs.schedule(Note())
            await ended(app, done)
            running = await app.jobs.schedule(Hold(label="held"))
            await journal.until_started("held")
            assert [record.id for record in await app.jobs.find()] == [running, done, waiting]
            assert [record.id for record in await app.jobs.find(state=JobState.RUNNING)] == [running]
            assert [record.id for record in await app.jobs.find(queue="later")] == [waiting]
            assert [record.id for record in await app.jobs.find(name="Note", limit=1)] == [done]
            journal.gate.set()
