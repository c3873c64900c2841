"""The demo's own tables: what its processes saw happen, by the database's clock."""

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import anyio

from eventflow import JobId, SourceId
from eventflow.demo.statements import statement
from eventflow.postgres import Connection, connector

CONNECTIONS = 4
"""Handlers of one burst start together; each waits for few others until its start is written."""


class Ledger:
    """
    Writes down what was scheduled and what was executed, on connections of its own.

    It waits for no disk: its writes outlive the process that made them, which is what gets killed here, and
    measuring stays cheap beside what is measured. The jobs themselves are written durably.
    """

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._free = list(connections)
        self._limit = anyio.Semaphore(len(connections))
        self._pid = os.getpid()

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str) -> AsyncGenerator["Ledger"]:
        """Connect to the database at *dsn*, where the tables are."""
        connect = connector(dsn, name="demo ledger")
        connections: list[Connection] = []
        try:
            for _ in range(CONNECTIONS):
                connections.append(await connect())
                await connections[-1].execute("SET synchronous_commit = off")
            yield cls(connections)
        finally:
            for connection in connections:
                connection.terminate()

    async def executing(self, source_id: SourceId) -> None:
        """A handler has started on the command with this source id; called first thing, once per execution."""
        async with self._connection() as connection:
            await connection.execute(statement("insert_execution"), source_id, self._pid)

    async def scheduled(self, source_ids: Sequence[SourceId], job_ids: Sequence[JobId]) -> None:
        """The scheduler has promised to run these commands, as these jobs."""
        async with self._connection() as connection:
            await connection.execute(statement("insert_scheduled"), source_ids, [job_id.uuid for job_id in job_ids])

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[Connection]:
        async with self._limit:
            connection = self._free.pop()
            try:
                yield connection
            finally:
                self._free.append(connection)
