"""The scheduler on Postgres: the store's, and in the caller's transaction too."""

from collections.abc import Sequence
from typing import TypeGuard

import asyncpg

from eventflow.errors import InvalidScheduleError
from eventflow.jobs import JobEncoder, NewJob, Notify, StoreJobScheduler, SupportsExecute
from eventflow.postgres.connection import AnyConnection
from eventflow.postgres.job_store import PostgresJobStore
from eventflow.postgres.transactions import Transactions


class PostgresJobScheduler(StoreJobScheduler):
    """
    A :class:`~eventflow.jobs.JobScheduler` on Postgres.

    Args:
        store: Where jobs are kept.
        encoder: Checks and encodes them.
        transactions: Those opened with ``app.transaction()``.
    """

    def __init__(self, store: PostgresJobStore, encoder: JobEncoder, transactions: Transactions) -> None:
        super().__init__(store, encoder)
        self._postgres = store
        self._transactions = transactions

    async def _insert(self, jobs: Sequence[NewJob], connection: SupportsExecute | None, notify: Notify) -> None:
        if notify not in ("after_commit", "in_transaction"):
            raise InvalidScheduleError(f'notify={notify!r}: "after_commit" or "in_transaction"')
        if connection is None:
            if notify == "in_transaction":
                raise InvalidScheduleError('notify="in_transaction" needs a connection=')
            await self._postgres.insert(jobs)
            return
        if not _is_connection(connection):
            raise InvalidScheduleError(
                f"connection= takes an asyncpg connection, e.g. from app.transaction(), not {type(connection).__name__}"
            )
        soonest_us = await self._postgres.insert_in(connection, jobs)
        transaction = self._transactions.find(connection)
        if notify == "in_transaction":
            await self._postgres.notify_in(connection)
        elif transaction is not None:
            transaction.add([job.id for job in jobs], soonest_us)


def _is_connection(candidate: object) -> TypeGuard[AnyConnection]:
    return isinstance(candidate, asyncpg.Connection | asyncpg.pool.PoolConnectionProxy)
