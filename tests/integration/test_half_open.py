"""The network goes away without a word: sockets stay open, and nobody answers."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, ClassVar

import anyio
import anyio.to_thread
import asyncpg
import msgspec
import pytest

from eventflow import (
    App,
    CommitUnknownError,
    Job,
    JobContext,
    JobId,
    JobState,
    SystemClock,
    WorkerSettings,
)
from eventflow.postgres import Lane, connector
from eventflow.postgres.connection import SILENCE_SECONDS
from reliability.rig.proxy import Proxy
from reliability.rig.transitions import Transitions
from tests.support.journal import Hold, Journal, Note, count_jobs, ended, flow_of, query
from tests.support.waiting import eventually, until

CLOCK = SystemClock()
SHORT_LEASE = WorkerSettings(heartbeat_interval=0.1, fence_after=0.4, lease_duration=0.8, tick_interval=0.2)


class Stopwatch:
    """Seconds since it was made, or restarted."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin again."""
        self._since = CLOCK.monotonic()

    @property
    def seconds(self) -> float:
        """So many have passed."""
        return CLOCK.monotonic() - self._since


def logged(caplog: pytest.LogCaptureFixture, *events: str) -> int:
    """How often one of these events was logged."""
    return sum(record.getMessage() in events for record in caplog.records)


async def test_silence_is_noticed_and_work_goes_on_when_the_network_is_back(
    dsn: str, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    """Within 10 s the worker says so and cancels its handlers, and callers are told; 2 s after it, new work starts."""
    proxy, flow, after = Proxy(dsn), flow_of(journal), dict[str, float]()

    async def schedule(app: App) -> None:
        with pytest.raises(CommitUnknownError):
            await app.jobs.schedule(Note(label="unknown"))
        after["told"] = silence.seconds

    async with flow.open(dsn) as producer, proxy.serve() as address, flow.open(address) as app, app.worker():
        await app.jobs.schedule(Hold(label="held"))
        await journal.until_started("held")
        async with anyio.create_task_group() as group:
            proxy.hold()
            silence = Stopwatch()
            group.start_soon(schedule, app)
            await until(lambda: logged(caplog, "service.failed", "worker.lease_lost"))
            after["noticed"] = silence.seconds
            await until(lambda: journal.cancelled)
            after["cancelled"] = silence.seconds
        waiting = await producer.jobs.schedule(Note(label="waiting"))
        await until(lambda: logged(caplog, "worker.lease_lost"))
        accepted = proxy.accepted
        await until(lambda: proxy.accepted > accepted)  # an attempt to come back, in vain

        proxy.forget()
        back = Stopwatch()
        await journal.until_started("waiting")
        after["resumed"] = back.seconds
        assert (await ended(producer, waiting)).state is JobState.SUCCEEDED

    assert after["noticed"] < 10
    assert after["cancelled"] < 10.5  # 10 s after the last beat that was answered; and a busy machine's time
    assert after["told"] < 10.5
    assert after["resumed"] < 2


class Insist(Job):
    """Schedules one job after the other."""

    async def execute(self, context: JobContext) -> None:
        journal, app = await context.services.aget(Journal), await context.services.aget(App)
        await journal.note(context, "insists")
        while True:
            await app.jobs.schedule(Note())


class Leave(Job):
    """Ends as soon as the gate is open."""

    async def execute(self, context: JobContext) -> None:
        journal = await context.services.aget(Journal)
        await journal.note(context, "leaves")
        await journal.gate.wait()


@pytest.mark.parametrize("job", [None, Leave(), Hold(label="holds"), Insist()], ids=lambda job: type(job).__name__)
async def test_stop_does_not_wait_for_a_database_that_is_silent(job: Job | None, dsn: str, journal: Journal) -> None:
    """Whether its handlers end or are cancelled: the worker and its application end a second after the grace period."""
    proxy, grace, stopping = Proxy(dsn), 0.5, Stopwatch()
    async with proxy.serve() as address:
        async with flow_of(journal, Insist, Leave).open(address) as app:  # noqa: SIM117 - the proxy ends later
            async with app.worker(WorkerSettings(grace_period=grace)) as worker:
                await ended(app, await app.jobs.schedule(Note()))
                if job is not None:
                    await app.jobs.schedule_many([job] * 3)
                    await journal.until_runs(4)
                proxy.hold()
                if isinstance(job, Leave):
                    journal.gate.set()
                stopping.restart()
                worker.stop()
        stopped_after = stopping.seconds

    assert stopped_after < grace + 1


async def test_connections_that_were_not_used_meanwhile_are_not_trusted(
    dsn: str, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A firewall forgets idle connections: an insert finds out before it is sent, and its caller never knows."""
    monkeypatch.setattr("eventflow.postgres.job_store.INSERT_IDLE_SECONDS", 0.0)
    proxy = Proxy(dsn)
    async with proxy.serve() as address, flow_of(journal).open(address) as app:
        await app.jobs.schedule(Note())
        proxy.hold()
        proxy.forget()
        inserting = Stopwatch()
        await app.jobs.schedule(Note())

    assert inserting.seconds < 5
    assert await count_jobs(dsn) == 2


async def test_connection_is_not_trusted_while_another_was_not_answered(dsn: str) -> None:
    """It would be found dead only after its own statement has waited in vain."""
    proxy = Proxy(dsn)
    async with proxy.serve() as address:
        connect = connector(address, name="test")
        one, other = Lane(connect, "eventflow"), Lane(connect, "eventflow")
        assert await one.answers(5)
        assert await other.answers(5)
        proxy.hold()
        proxy.forget()
        assert not await one.answers(SILENCE_SECONDS + 0.1)
        asked = Stopwatch()
        assert await other.answers(5)
        await one.close()
        await other.close()

    assert asked.seconds < 2


@pytest.mark.parametrize("silence", ["of both, for good", "of the server, for a while"])
async def test_silence_under_load_loses_and_doubles_nothing(
    silence: str, dsn: str, journal: Journal, transitions: Transitions, caplog: pytest.LogCaptureFixture
) -> None:
    """What was sent before or during it arrives late, unheard or never: every job ends once."""
    proxy, flow, ids = Proxy(dsn), flow_of(journal), list[JobId]()
    async with flow.open(dsn) as producer, proxy.serve() as address, flow.open(address) as app, app.worker(SHORT_LEASE):
        for times in (1, 2):
            before = len(journal.runs)
            ids += await producer.jobs.schedule_many([Note()] * 1000)
            await journal.until_runs(before + 100)
            proxy.hold(requests=silence == "of both, for good")
            await until(lambda times=times: logged(caplog, "worker.lease_lost") == times)
            if silence == "of both, for good":
                proxy.forget()
            else:
                proxy.release()
        await eventually(lambda: all_succeeded(dsn), within=30)
    ends = [change.job_id for change in await transitions.all() if change.entered == "succeeded"]

    assert sorted(ends) == sorted(ids)


async def all_succeeded(dsn: str) -> bool:
    """Whether no job is in any other state."""
    [row] = await query(dsn, "SELECT count(*) AS others FROM eventflow.any_job WHERE state <> 'succeeded'")
    return row["others"] == 0


OTHER = WorkerSettings(heartbeat_interval=0.1, tick_interval=0.1, queues=("other",))


class Lookout:
    """A worker that holds a job, and another that would rescue it."""

    def __init__(self, admin_dsn: str, app: App) -> None:
        self._admin_dsn = admin_dsn
        self.app = app

    async def session(self) -> int | None:
        """What the first worker shows of its listening session."""
        [row] = await query(self._admin_dsn, "SELECT session_key FROM eventflow.worker WHERE queues IS NULL")
        key: int | None = row["session_key"]
        return key

    async def until_shown(self, *, other_than: int | None = None) -> int:
        """Wait until the first worker shows a session, another than this."""

        async def shown() -> int | None:
            key = await self.session()
            return None if key == other_than else key

        key = await eventually(shown)
        assert key is not None
        return key

    async def until_withdrawn(self) -> None:
        """Wait until it shows none."""

        async def withdrawn() -> bool:
            return await self.session() is None

        await eventually(withdrawn)

    async def kill_ear(self) -> None:
        """End its listening session."""
        await query(
            self._admin_dsn,
            "SELECT pg_terminate_backend(l.pid) FROM eventflow.worker AS w JOIN pg_locks AS l"
            " ON l.locktype = 'advisory' AND (l.classid::bigint << 32) | l.objid::bigint = w.session_key"
            " WHERE w.queues IS NULL",
        )

    async def until_looked(self) -> None:
        """Let the second worker look again and again, for more than a second."""
        before = await self._beats()

        async def looked() -> bool:
            return await self._beats() > before + 15

        await eventually(looked)

    async def _beats(self) -> int:
        [row] = await query(self._admin_dsn, "SELECT beat FROM eventflow.worker WHERE queues IS NOT NULL")
        beat: int = row["beat"]
        return beat


@asynccontextmanager
async def lookout(dsn: str, admin_dsn: str, journal: Journal, **options: Any) -> AsyncGenerator[Lookout]:
    """Begin with a job that is held; at the end, nobody may have rescued it."""
    flow = flow_of(journal)
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(flow.open(dsn, **options))
        await stack.enter_async_context(app.worker())
        job_id = await app.jobs.schedule(Hold(label="held"))
        await journal.until_started("held")
        other = await stack.enter_async_context(flow.open(dsn))
        await stack.enter_async_context(other.worker(OTHER))
        watched = Lookout(admin_dsn, app)
        await watched.until_shown()
        yield watched
        journal.gate.set()
        record = await ended(app, job_id)
        assert (record.state, record.claim_no, record.crashes) == (JobState.SUCCEEDED, 1, 0)


@pytest.fixture
def frequent_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deafness is noticed soon."""
    monkeypatch.setattr("eventflow.postgres.listener.PROOF_INTERVAL", 0.2)
    monkeypatch.setattr("eventflow.postgres.listener.PROOF_SECONDS", 0.5)


async def test_listening_connection_that_is_killed_rescues_nothing(dsn: str, admin_dsn: str, journal: Journal) -> None:
    """Again and again: the worker lives, says so, and listens anew."""
    async with lookout(dsn, admin_dsn, journal) as watched:
        for _ in range(3):
            key = await watched.until_shown()
            await watched.kill_ear()
            await watched.until_shown(other_than=key)
        await watched.until_looked()


@pytest.mark.parametrize("how", ["cut", "deaf"])
async def test_worker_that_cannot_listen_is_not_taken_for_dead(
    how: str, dsn: str, admin_dsn: str, journal: Journal, frequent_proofs: None
) -> None:
    """Its session is gone for long, by others or by its own decision: it beats without, polls, and listens again."""
    proxy = Proxy(dsn)
    async with proxy.serve() as address, lookout(dsn, admin_dsn, journal, listen_dsn=address) as watched:
        if how == "cut":
            proxy.refuse(True)
        else:
            proxy.hold(requests=False)  # notifications are sent, and swallowed
        await watched.until_withdrawn()
        await watched.until_looked()
        await ended(watched.app, await watched.app.jobs.schedule(Note(label="polled")))

        proxy.refuse(False) if how == "cut" else proxy.forget()
        await watched.until_shown()


class Ear(asyncpg.Connection):  # type: ignore[type-arg]
    """A connection whose LISTEN tests can take away."""

    listening: "Ear | None" = None

    async def add_listener(self, channel: str, callback: Any) -> None:  # Any: the driver's signature
        await super().add_listener(channel, callback)
        Ear.listening = self

    def unlisten(self) -> None:
        """In any thread: the session goes on, and hears nothing more."""
        asyncio.run_coroutine_threadsafe(self.execute("UNLISTEN *"), self._loop).result(5)


class StillBorn(asyncpg.Connection):  # type: ignore[type-arg]
    """A connection that is half-open before it has heard anything, the first time."""

    listeners = 0
    hushed: ClassVar[list[Callable[[], object]]] = []

    async def add_listener(self, channel: str, callback: Any) -> None:  # Any: the driver's signature
        await super().add_listener(channel, callback)
        StillBorn.listeners += 1
        if StillBorn.listeners == 2:  # it listens for everything it should
            StillBorn.hushed.pop()()


async def test_session_that_never_heard_anything_is_given_up_if_it_is_half_open(
    dsn: str, admin_dsn: str, journal: Journal, frequent_proofs: None
) -> None:
    """Nothing is ever sent over it, so nothing would tell; and others would have only its beats to go by."""
    proxy, loop = Proxy(dsn), asyncio.get_running_loop()

    def hush() -> None:
        proxy.hold()
        proxy.forget()

    StillBorn.hushed.append(lambda: loop.call_soon_threadsafe(hush))
    async with (
        proxy.serve() as address,
        lookout(dsn, admin_dsn, journal, listen_dsn=address, connection_class=StillBorn) as watched,
    ):
        await watched.until_shown()

    assert StillBorn.listeners >= 4, "nobody has listened anew"


async def test_registration_that_is_lost_is_noticed_and_healed(
    dsn: str, admin_dsn: str, journal: Journal, frequent_proofs: None, caplog: pytest.LogCaptureFixture
) -> None:
    """The session is well, but nothing arrives: the nonce tells; meanwhile jobs are found by looking."""
    async with (
        lookout(dsn, admin_dsn, journal, connection_class=Ear) as watched,
        flow_of(journal).open(dsn) as producer,
    ):
        key, deaf = await watched.until_shown(), Ear.listening
        assert deaf is not None
        await anyio.to_thread.run_sync(deaf.unlisten)
        await ended(producer, await producer.jobs.schedule(Note(label="meanwhile")))
        await watched.until_shown(other_than=key)
        await until(lambda: "notifications do not arrive any more" in caplog.text)
        assert Ear.listening is not deaf
        await watched.until_looked()


async def test_stop_does_not_wait_for_a_database_that_has_long_been_silent(
    dsn: str, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that lost its lease and waits to come back has nothing to end in good order: it ends at once."""
    proxy, stopping = Proxy(dsn), Stopwatch()
    async with proxy.serve() as address:
        async with flow_of(journal).open(address) as app:  # noqa: SIM117 - the proxy ends later
            async with app.worker(msgspec.structs.replace(SHORT_LEASE, grace_period=0.0)) as worker:
                await ended(app, await app.jobs.schedule(Note()))
                proxy.hold()
                await until(lambda: logged(caplog, "worker.lease_lost"))
                accepted = proxy.accepted
                await until(lambda: proxy.accepted > accepted)  # an attempt to come back, in vain
                stopping.restart()
                worker.stop()
        stopped_after = stopping.seconds

    assert stopped_after < 1
