"""The connection breaks after the server has committed and before it could say so."""

import asyncio
import threading
import time
from contextlib import AbstractAsyncContextManager, suppress
from datetime import timedelta
from os import dup
from select import select
from socket import MSG_PEEK, socket
from uuid import UUID

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
from eventflow.postgres.transactions import atomic
from reliability.rig.proxy import Proxy
from reliability.rig.transitions import Transitions
from tests.support.waiting import eventually, until

HOUR = timedelta(hours=1)
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


@flow.job
class SendTwice(Job):
    """Sends again by a follow-up."""

    to: str

    async def execute(self, context: JobContext) -> None:
        context.schedule(Send(to=self.to))


@flow.job
class Wait(Job):
    """Runs until it is let go."""

    async def execute(self, context: JobContext) -> None:
        await until(let_go.is_set)


let_go = threading.Event()


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


async def test_bulk_finds_out_that_it_was_committed(dsn: str, admin_dsn: str) -> None:
    """The same for many jobs, which are copied."""
    proxy = Proxy(dsn)
    async with proxy.serve() as address, flow.open(address) as app:
        await app.jobs.schedule(Opener())
        proxy.cut_after(b"COMMIT")
        await app.jobs.schedule_many([Send(to="me")] * 300)
        assert proxy.cuts == 1
        assert await _count(admin_dsn) == 300


async def test_insert_that_may_still_arrive_is_not_said_to_have_failed(dsn: str, admin_dsn: str) -> None:
    """It is not there when it is looked up, and comes later: "nothing was written" would have been a lie."""
    proxy = Proxy(dsn)
    async with proxy.serve() as address, flow.open(address) as app:
        await app.jobs.schedule(Opener())
        proxy.cut_before(b"somebody in particular")
        with pytest.raises(CommitUnknownError) as raised:
            await app.jobs.schedule(Send(to="somebody in particular"))
        assert await _count(admin_dsn) == 0
        await proxy.deliver()
        [job_id] = raised.value.ids
        await eventually(lambda: app.jobs.get(JobId(job_id)))
        assert await _count(admin_dsn) == 1


@pytest.mark.parametrize("what", ["cancel", "reschedule"])
async def test_change_without_an_answer_is_not_said_to_have_failed(dsn: str, what: str) -> None:
    """It was made here; "nothing was written" would have been a lie."""
    proxy = Proxy(dsn)
    async with proxy.serve() as address, flow.open(address) as app:
        opener, job_id = await app.jobs.schedule_many([Send(to="me")] * 2, delay=HOUR)

        async def change(job_id: JobId) -> object:
            return await (app.jobs.cancel(job_id) if what == "cancel" else app.jobs.reschedule(job_id, delay=2 * HOUR))

        await change(opener)  # makes the statement known to the server, so that what follows is one message
        proxy.cut_after(UUID(job_id.uuid).bytes)
        with pytest.raises(CommitUnknownError) as raised:
            await change(job_id)
        record = await app.jobs.get(job_id)

        assert list(raised.value.ids) == [job_id]
        assert record is not None
        assert record.state is (JobState.CANCELLED if what == "cancel" else JobState.WAITING)
        assert record.due_at - record.created_at > (timedelta() if what == "cancel" else 1.5 * HOUR)


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


async def test_claim_that_arrives_late_is_adopted(dsn: str, admin_dsn: str, transitions: Transitions) -> None:
    """Its sender has long sent another: what it takes is that worker's all the same, and runs once."""
    proxy = Proxy(dsn)
    async with flow.open(dsn) as producer, proxy.serve() as address, flow.open(address) as app, app.worker():
        opener = await producer.jobs.schedule(Opener())
        await eventually(lambda: _succeeded(producer, opener))
        proxy.cut_before(HORIZON)
        first = await producer.jobs.schedule(Send(to="me"))
        await eventually(lambda: _succeeded(producer, first))
        assert proxy.cuts == 1
        second = await _schedule_in_silence(admin_dsn)
        await proxy.deliver()
        await eventually(lambda: _succeeded(producer, second))
        for job_id in (first, second):
            assert await transitions.states(job_id) == ["waiting", "running", "succeeded"]


async def _schedule_in_silence(admin_dsn: str) -> JobId:
    """A job that nobody announces, so that the next claim to arrive is most likely the late one."""
    admin: Connection = await asyncpg.connect(admin_dsn)
    try:
        job_id = await admin.fetchval("SELECT eventflow.schedule_job('Send', 1, '{\"to\": \"me\"}')")
    finally:
        await admin.close()
    return JobId.of(str(job_id))


@pytest.mark.parametrize("arrives", [True, False], ids=["answer lost", "commit lost"])
async def test_completion_with_follow_ups_is_one_whatever_comes_of_its_commit(
    arrives: bool,
    dsn: str,
    transitions: Transitions,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Committed or not, and locked by a session that never hears that its client is gone: it ended once, with one."""
    monkeypatch.setattr(
        "eventflow.postgres.connection.ABANDONED", "set_config('idle_in_transaction_session_timeout', '1s', false)"
    )
    proxy = Proxy(dsn)
    async with flow.open(dsn) as producer, proxy.serve() as address, flow.open(address) as app, app.worker():
        opener = await producer.jobs.schedule(Opener())
        await eventually(lambda: _succeeded(producer, opener))
        if arrives:
            proxy.cut_after(b"COMMIT;")
        else:
            proxy.cut_before(b"COMMIT;")
        job_id = await producer.jobs.schedule(SendTwice(to="me"))
        await eventually(lambda: _succeeded(producer, job_id))
        assert proxy.cuts == 1
        if arrives:
            await until(lambda: "claim.end_unknown" in caplog.messages)  # it was sent again
        await proxy.deliver()
        [follow_up] = await eventually(lambda: producer.jobs.find(name="Send", state=JobState.SUCCEEDED))
        for once in (job_id, follow_up.id):
            assert await transitions.states(once) == ["waiting", "running", "succeeded"]
        assert len(await producer.jobs.find(name="Send")) == 1


async def test_end_is_written_again_when_the_worker_stood_still_in_its_transaction(
    dsn: str, transitions: Transitions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server takes it for lost and ends the session, which the worker reads with the answer to its BEGIN."""
    monkeypatch.setattr(
        "eventflow.postgres.connection.ABANDONED", "set_config('idle_in_transaction_session_timeout', '300ms', false)"
    )
    stood_still = False

    def stand_still(connection: Connection) -> None:
        with socket(fileno=dup(connection._transport.get_extra_info("socket").fileno())) as received:
            while select([received], [], []) and b"25P03" not in received.recv(4096, MSG_PEEK):
                time.sleep(0.01)  # noqa: TID251 - nothing else may run

    def atomic_after_a_stall(connection: Connection) -> AbstractAsyncContextManager[None]:
        nonlocal stood_still
        if not stood_still:
            stood_still = True
            asyncio.get_running_loop().call_soon(stand_still, connection)  # BEGIN is sent then, its answer not read
        return atomic(connection)

    async with flow.open(dsn) as app, app.worker():
        opener = await app.jobs.schedule(Opener())
        await eventually(lambda: _succeeded(app, opener))
        monkeypatch.setattr("eventflow.postgres.job_store.atomic", atomic_after_a_stall)
        job_id = await app.jobs.schedule(SendTwice(to="me"))
        await eventually(lambda: _succeeded(app, job_id))

        [follow_up] = await eventually(lambda: app.jobs.find(name="Send", state=JobState.SUCCEEDED))
        assert "service.failed" in caplog.messages
        for once in (job_id, follow_up.id):
            assert await transitions.states(once) == ["waiting", "running", "succeeded"]


async def test_beat_without_an_answer_is_repeated_and_changes_nothing(
    dsn: str, admin_dsn: str, transitions: Transitions
) -> None:
    """The worker stays who it is, and keeps its job."""
    proxy = Proxy(dsn)
    settings = WorkerSettings(heartbeat_interval=0.1)
    let_go.clear()
    async with flow.open(dsn) as producer, proxy.serve() as address, flow.open(address) as app, app.worker(settings):
        job_id = await producer.jobs.schedule(Wait())
        before = await eventually(lambda: _beats_with_session(admin_dsn))
        proxy.cut_after(before[0]["session_server"].encode())
        await until(lambda: proxy.cuts == 1)

        async def beaten() -> bool:
            return (await _beats_with_session(admin_dsn))[0]["beat"] > before[0]["beat"] + 5

        await eventually(beaten)
        let_go.set()
        await eventually(lambda: _succeeded(producer, job_id))
        assert [row["id"] for row in await _beats_with_session(admin_dsn)] == [before[0]["id"]]
        assert await transitions.states(job_id) == ["waiting", "running", "succeeded"]


async def _beats_with_session(admin_dsn: str) -> list[asyncpg.Record]:
    admin: Connection = await asyncpg.connect(admin_dsn)
    try:
        return await admin.fetch("SELECT * FROM eventflow.worker WHERE session_server IS NOT NULL")
    finally:
        await admin.close()


async def _succeeded(app: App, job_id: JobId) -> bool:
    record = await app.jobs.get(job_id)
    return record is not None and record.state is JobState.SUCCEEDED
