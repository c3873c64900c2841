"""Taking over a dead worker's jobs, when somebody holds what that needs."""

import asyncpg

from eventflow import WorkerId
from eventflow.jobs import Interest, Peer, WorkerRecord
from eventflow.postgres import Connection, PostgresJobStore, connector

NOBODY = Interest(None, (), ())


async def test_rescue_does_not_wait_for_a_claim_that_is_stuck(dsn: str, admin_dsn: str) -> None:
    """A claim under way holds its worker's row; the rescuer's other work goes on, and a later look succeeds."""
    store = PostgresJobStore(connector(dsn, name="test"), "eventflow")
    stuck: Connection = await asyncpg.connect(admin_dsn)
    try:
        dead = WorkerId.new()
        await store.open_worker(WorkerRecord(dead, "host", 1, "1.0", None, 10))
        peer = Peer(dead, beat=0, session_gone=True)
        async with stuck.transaction():
            await stuck.execute("SELECT FROM eventflow.worker WHERE id = $1 FOR KEY SHARE", dead.uuid)
            assert await store.rescue(peer) is None
            assert (await store.tick(WorkerId.new(), NOBODY)).peers == [Peer(dead, beat=0, session_gone=False)]
        assert await store.rescue(peer) == 0
    finally:
        await stuck.close()
        await store.close()
