"""The connections that several purposes share."""

from collections.abc import AsyncGenerator

import anyio
import pytest

from eventflow.postgres import Connection
from eventflow.postgres.connection import Lanes, LaneStack, connector
from tests.support.waiting import eventually, waits_for_lock

BACKEND = "SELECT pg_backend_pid()"


@pytest.fixture
async def stack(dsn: str) -> AsyncGenerator[LaneStack]:
    """One whose lanes are closed in the end."""
    lanes = LaneStack(connector(dsn, name="lanes"), "eventflow")
    yield lanes
    await close(lanes)


async def close(stack: LaneStack) -> None:
    """Close all of its lanes, at once."""
    async with anyio.create_task_group() as group:
        for lane in stack:
            group.start_soon(lane.close)


async def backend(lanes: Lanes) -> int:
    """The process of the server that answers."""
    async with lanes.connection() as connection:
        return await connection.fetchval(BACKEND)


async def test_warm_connection_is_used_again_for_whatever_comes_next(stack: LaneStack) -> None:
    """Statements that follow each other all go over one, and no other is opened."""
    reading, writing = stack.share(2), stack.share(4)

    assert len({await backend(lanes) for lanes in (reading, writing, reading, writing, writing)}) == 1


async def test_nobody_waits_for_the_share_of_another(stack: LaneStack) -> None:
    """A purpose that has all of its connections in use leaves the others theirs, and waits for its own."""
    reading, writing = stack.share(1), stack.share(2)
    got_third = anyio.Event()

    async def third() -> None:
        async with writing.connection():
            got_third.set()

    async with anyio.create_task_group() as group:
        async with writing.connection() as first, writing.connection() as second:
            group.start_soon(third)
            pids = {await connection.fetchval(BACKEND) for connection in (first, second)}
            pids.add(await backend(reading))
            assert len(pids) == 3
            assert not got_third.is_set()
        await got_third.wait()


async def test_closing_waits_for_a_statement_under_way(stack: LaneStack, admin: Connection) -> None:
    """A commit that has been sent is not cut off by the end of its application."""
    writing = stack.share(1)
    await admin.execute("CREATE TABLE eventflow.written (number int); GRANT ALL ON eventflow.written TO PUBLIC")

    async def write() -> None:
        async with writing.connection() as connection:
            await connection.execute("INSERT INTO eventflow.written VALUES (1)")

    async def is_stuck() -> bool:
        return await waits_for_lock(admin, "INSERT INTO eventflow.written")

    async with anyio.create_task_group() as group, admin.transaction():
        await admin.execute("LOCK TABLE eventflow.written")
        group.start_soon(write)
        await eventually(is_stuck)
        group.start_soon(close, stack)
        await anyio.wait_all_tasks_blocked()

    assert await admin.fetchval("SELECT count(*) FROM eventflow.written") == 1
