"""The connection breaks after the server has committed and before it could say so."""

from contextlib import suppress

import anyio.lowlevel
import asyncpg
import pytest

from eventflow import (
    App,
    CommitUnknownError,
    DatabaseError,
    EventFlow,
    Job,
    JobContext,
    JobId,
    JobState,
    WorkerSettings,
)
from eventflow.postgres import Connection
from tests.support.proxy import Proxy
from tests.support.transitions import Transitions
from tests.support.waiting import eventually

HORIZON = int(WorkerSettings().claim_ahead * 1_000_000).to_bytes(8, "big")
"""An argument that only a claim has."""

flow = EventFlow("lost answers")


@flow.job
class Send(Job):
    to: str

    async def execute(self, context: JobContext) -> None:
        await anyio.lowlevel.checkpoint()


@flow.job
class Opener(Job):
    """Makes every statement of a worker known to the server once, so that what follows is one message."""

    async def execute(self, context: JobContext) -> None:
        await anyio.lowlevel.checkpoint()


async def _count(admin_dsn: str) -> int:
    admin: Connection = await asyncpg.connect(admin_dsn)
    try:
        count: int = await admin.fetchval("SELECT count(*) FROM eventflow.any_job WHERE name = 'Send'")
    finally:
        await admin.close()
    return count


async def test_caller_of_a_transaction_is_told_that_its_commit_is_unknown(dsn: str, admin_dsn: str) -> None:
    """It was committed here; "nothing was written" would have been a lie, and a retry a double."""
    proxy = Proxy(dsn)
    async with proxy.serve() as address, flow.open(address) as app:
        ids: list[JobId] = []

        async def write() -> None:
            async with app.transaction() as connection:
                ids.append(await app.jobs.schedule(Send(to="me"), connection=connection))
                proxy.cut_after(b"COMMIT")

        with pytest.raises(CommitUnknownError) as raised:
            await write()
        assert list(raised.value.ids) == ids
        assert proxy.cuts == 1
        assert await _count(admin_dsn) == 1


async def test_transaction_whose_connection_breaks_after_the_commit_has_succeeded(dsn: str, admin_dsn: str) -> None:
    """What the pool does to the connection afterwards is not the caller's trouble."""
    proxy = Proxy(dsn)
    async with proxy.serve() as address, flow.open(address) as app:
        async with app.transaction() as connection:
            await app.jobs.schedule(Send(to="me"), connection=connection)
            proxy.cut_after(b"pg_advisory_unlock_all")  # of the pool's reset
        assert proxy.cuts == 1
        assert await _count(admin_dsn) == 1


async def test_transaction_that_was_aborted_in_silence_is_not_taken_for_committed(dsn: str, admin_dsn: str) -> None:
    """A statement fails and the block hides it: the job scheduled before is gone, and the caller must hear of it."""

    async def write(app: App) -> None:
        async with app.transaction() as connection:
            await app.jobs.schedule(Send(to="me"), connection=connection)
            with suppress(asyncpg.UndefinedTableError):
                await connection.execute("SELECT FROM nowhere")

    async with flow.open(dsn) as app:
        with pytest.raises(DatabaseError, match="aborted"):
            await write(app)
        assert await _count(admin_dsn) == 0


async def test_schedule_finds_out_that_it_was_committed(dsn: str, admin_dsn: str) -> None:
    """The id was made before, so the job can be looked up: the call succeeds, and the job exists once."""
    proxy = Proxy(dsn)
    async with proxy.serve() as address, flow.open(address) as app:
        await app.jobs.schedule(Opener())
        proxy.cut_after(b"somebody in particular")
        job_id = await app.jobs.schedule(Send(to="somebody in particular"))
        assert proxy.cuts == 1
        assert await app.jobs.get(job_id) is not None
        assert await _count(admin_dsn) == 1


async def test_claim_without_an_answer_is_adopted(dsn: str, transitions: Transitions) -> None:
    """Its jobs are this worker's: it finds and runs them, once."""
    proxy = Proxy(dsn)
    async with flow.open(dsn) as producer, proxy.serve() as address, flow.open(address) as app, app.worker():
        opener = await producer.jobs.schedule(Opener())
        await eventually(lambda: _succeeded(producer, opener))
        proxy.cut_after(HORIZON)
        job_id = await producer.jobs.schedule(Send(to="me"))
        await eventually(lambda: _succeeded(producer, job_id))
        assert proxy.cuts == 1
        assert await transitions.states(job_id) == ["waiting", "running", "succeeded"]


async def test_completion_without_an_answer_is_repeated_and_changes_nothing(dsn: str, transitions: Transitions) -> None:
    """The fence makes the second try harmless: the job ran once and ended once."""
    proxy = Proxy(dsn)
    async with flow.open(dsn) as producer, proxy.serve() as address, flow.open(address) as app, app.worker():
        opener = await producer.jobs.schedule(Opener())
        await eventually(lambda: _succeeded(producer, opener))
        proxy.cut_after(b"succeeded")  # the state is an argument of the completion
        job_id = await producer.jobs.schedule(Send(to="me"))
        await eventually(lambda: _succeeded(producer, job_id))
        assert proxy.cuts == 1
        assert await transitions.states(job_id) == ["waiting", "running", "succeeded"]


async def _succeeded(app: App, job_id: JobId) -> bool:
    record = await app.jobs.get(job_id)
    return record is not None and record.state is JobState.SUCCEEDED
