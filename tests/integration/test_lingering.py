"""Handlers that outlive their cancellation."""

import logging
import threading

import pytest

from eventflow import Job, JobContext, WorkerSettings
from tests.support.journal import Journal, Note, ended, flow_of, query
from tests.support.waiting import until


class Gate:
    """Tells that a handler is in its thread, and lets it out."""

    def __init__(self) -> None:
        self.started = [threading.Event() for _ in range(2)]
        self.released = threading.Event()


gates: dict[str, Gate] = {}


class Stubborn(Job):
    """Runs in a thread, which nobody can stop."""

    gate: str
    number: int = 0

    def execute(self, context: JobContext) -> None:
        gates[self.gate].started[self.number].set()
        gates[self.gate].released.wait(30)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What does not end soon is named at once."""
    monkeypatch.setattr("eventflow.jobs.worker.incarnation.CLEAN_UP_SECONDS", 0.1)
    caplog.set_level(logging.INFO, "eventflow")


@pytest.mark.usefixtures("impatient")
async def test_worker_says_which_handlers_it_waits_for(
    dsn: str, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    """A stop that takes longer than the clean-up names the jobs that hold it up."""
    gate = gates["stop"] = Gate()
    async with flow_of(journal, Stubborn).open(dsn) as app:
        try:
            async with app.worker(WorkerSettings(grace_period=0)) as worker:
                job_id = await app.jobs.schedule(Stubborn(gate="stop"))
                await until(gate.started[0].is_set)
                worker.stop()
                await until(lambda: "worker.waiting_for_handlers" in caplog.messages)
                [record] = [r for r in caplog.records if r.message == "worker.waiting_for_handlers"]
                assert vars(record)["jobs"] == [job_id]
                gate.released.set()
        finally:
            gate.released.set()


@pytest.mark.usefixtures("impatient")
async def test_worker_that_lost_its_lease_works_on_beside_handlers_that_do_not_end(
    dsn: str, admin_dsn: str, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    """Each costs the slot it is in, until it ends; the others are free for the next incarnation."""
    gate = gates["lease"] = Gate()
    async with flow_of(journal, Stubborn).open(dsn) as app:
        try:
            async with app.worker(WorkerSettings(concurrency=2, heartbeat_interval=0.1)):
                await app.jobs.schedule(Stubborn(gate="lease"))
                await until(gate.started[0].is_set)
                await query(admin_dsn, "DELETE FROM eventflow.running")
                await query(admin_dsn, "UPDATE eventflow.worker SET closed_at = now()")
                await ended(app, await app.jobs.schedule(Note()))
                assert "worker.waiting_for_handlers" in caplog.messages

                await app.jobs.schedule(Stubborn(gate="lease", number=1))
                await until(gate.started[1].is_set)  # it has the second slot: there is no third
                last = await app.jobs.schedule(Note())
                assert (await app.jobs.get(last)) is not None
                assert last not in journal.ids()
                gate.released.set()
                await ended(app, last)
        finally:
            gate.released.set()
