"""Drives a job store from a contract test, whatever implements it and whatever its time is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from eventflow.clock import ManualClock, to_datetime
from eventflow.ids import JobId, WorkerId
from eventflow.jobs import (
    ClaimBatch,
    ClaimedJob,
    InMemoryJobStore,
    Interest,
    JobRecord,
    JobStore,
    NewJob,
    Outcome,
    Peer,
    Settlement,
    WorkerRecord,
)
from eventflow.postgres import PostgresJobStore, connector
from eventflow.scheduling import Due

NAMES = ("Send", "Print")
ERROR = '{"type": "Broken", "message": "no", "traceback": ""}'


def new_job(**given: Any) -> NewJob:  # Any: the fields of a NewJob
    """A job with what is not given made up."""
    fields: dict[str, Any] = {
        "id": JobId.new(),
        "name": "Send",
        "version": 1,
        "payload": b'{"to":"me"}',
        "queue": "default",
        "priority": 1,
        "due": Due(),
        "headers": b"{}",
    }
    return NewJob(**(fields | given))


def after(delay: timedelta) -> Due:
    """Due after a delay."""
    return Due(delay_us=delay // timedelta(microseconds=1))


def interest(queues: tuple[str, ...] | None = None, names: Sequence[str] = NAMES) -> Interest:
    """A worker's interest in version 1 of these names."""
    return Interest(queues, tuple(names), (1,) * len(names))


class StoreDriver(ABC):
    """A store, its time, and the calls of a worker with everything a test does not care about filled in."""

    store: JobStore
    wants = interest()

    @abstractmethod
    async def advance(self, by: timedelta) -> None:
        """Let the store's time pass."""

    @abstractmethod
    async def another_store(self) -> JobStore:
        """The same jobs through other connections, as of another process."""

    async def now(self) -> datetime:
        """The store's time."""
        return to_datetime((await self.store.tick(WorkerId.new(), self.wants)).now_us)

    async def insert(self, **given: Any) -> JobId:  # Any: the fields of a NewJob
        """Insert one job."""
        job = new_job(**given)
        await self.store.insert([job])
        return job.id

    async def open_worker(self) -> WorkerId:
        """A new worker."""
        worker_id = WorkerId.new()
        await self.store.open_worker(worker_record(worker_id))
        return worker_id

    async def claim_batch(
        self,
        worker: WorkerId,
        ready: int = 10,
        *,
        ahead: int = 0,
        horizon: timedelta = timedelta(0),
        wants: Interest | None = None,
    ) -> ClaimBatch:
        """Claim, by default what is ready now in any queue."""
        horizon_us = horizon // timedelta(microseconds=1)
        return await self.store.claim(worker, wants or self.wants, ready=ready, ahead=ahead, horizon_us=horizon_us)

    async def claim(self, worker: WorkerId, ready: int = 10, **options: Any) -> list[ClaimedJob]:
        """The jobs of :meth:`claim_batch`."""
        return list((await self.claim_batch(worker, ready, **options)).jobs)

    async def claim_ids(self, worker: WorkerId, ready: int = 10, **options: Any) -> list[JobId]:
        """Their ids."""
        return [claim.id for claim in await self.claim(worker, ready, **options)]

    async def claim_one(self, worker: WorkerId) -> ClaimedJob:
        """The one job that is ready."""
        [claim] = await self.claim(worker)
        return claim

    async def settle(self, worker: WorkerId, claim: ClaimedJob, outcome: Outcome, **given: Any) -> bool:
        """End one claim, kept for a day; false: it was not this worker's any more."""
        fields: dict[str, Any] = {"retention_days": 1}
        settlement = Settlement(claim=claim, outcome=outcome, **(fields | given))
        return await self.store.settle(worker, [settlement]) == {claim.id}

    async def get(self, job_id: JobId) -> JobRecord:
        """A job that must be there."""
        record = await self.store.get(job_id)
        assert record is not None
        return record

    async def peer(self, worker: WorkerId) -> Peer:
        """A worker as others see it."""
        tick = await self.store.tick(WorkerId.new(), self.wants)
        [peer] = [peer for peer in tick.peers if peer.worker_id == worker]
        return peer


class InMemoryDriver(StoreDriver):
    """The store in memory, on a clock that stands still."""

    def __init__(self) -> None:
        self._clock = ManualClock()
        self.store = InMemoryJobStore(self._clock)

    async def advance(self, by: timedelta) -> None:
        self._clock.advance(by)

    async def another_store(self) -> JobStore:
        return self.store


class PostgresDriver(StoreDriver):
    """
    The store on Postgres, whose time nobody can advance: stored times are moved into the past instead.

    Args:
        dsn: Of a worker.
        admin_dsn: Of a superuser, who moves time.
    """

    def __init__(self, dsn: str, admin_dsn: str) -> None:
        self._dsn = dsn
        self._admin_dsn = admin_dsn
        self._stores: list[PostgresJobStore] = []
        self.store = self._new_store()

    async def advance(self, by: timedelta) -> None:
        connection = await asyncpg.connect(self._admin_dsn)
        try:
            async with connection.transaction():
                for table, columns in _TIMES.items():
                    moved = ", ".join(f"{column} = {column} - $1::interval" for column in columns)
                    await connection.execute(f"UPDATE eventflow.{table} SET {moved}", by)
                if by.days:
                    await self._age_history(connection, by.days)
        finally:
            await connection.close()
        for store in self._stores:
            store._bounds.set_back()  # no look that it made is true any more

    async def _age_history(self, connection: Any, days: int) -> None:  # Any: a driver's connection
        for row in await connection.fetch(
            "SELECT DISTINCT expires_on - $1::integer AS day FROM eventflow.job_history", days
        ):
            day = row["day"]
            partition = f"job_history_{day:%Y%m%d}"
            await connection.execute(
                f"CREATE TABLE IF NOT EXISTS eventflow.{partition} PARTITION OF eventflow.job_history"
                f" FOR VALUES FROM ('{day}') TO ('{day + timedelta(days=1)}')"
            )
            await connection.execute(f"ALTER TABLE eventflow.{partition} OWNER TO eventflow_owner")
        await connection.execute("UPDATE eventflow.job_history SET expires_on = expires_on - $1::integer", days)

    async def another_store(self) -> JobStore:
        return self._new_store()

    async def close(self) -> None:
        """Close all connections."""
        for store in self._stores:
            await store.close()

    def _new_store(self) -> PostgresJobStore:
        store = PostgresJobStore(connector(self._dsn, name="contract"), "eventflow")
        self._stores.append(store)
        return store


_TIMES = {
    "job": ("due_at", "ready_at", "created_at"),
    "running": ("due_at", "ready_at", "created_at", "claimed_at"),
    "worker": ("started_at", "beat_at", "closed_at"),
    "signal": ("due_at",),
}


def worker_record(worker_id: WorkerId) -> WorkerRecord:
    """How a worker registers."""
    return WorkerRecord(worker_id, "host", 1, "1.0", None, 10)


def instant_of(value: str) -> datetime:
    """An instant as it is written in past attempts."""
    return datetime.fromisoformat(value).astimezone(UTC)
