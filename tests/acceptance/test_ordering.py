"""The example application: whoever is killed, the ledger balances."""

from pathlib import Path
from random import Random

import anyio
import asyncpg

from eventflow.postgres import Connection
from examples.ordering.__main__ import shop
from examples.ordering.app import flow
from examples.ordering.ledger import differences
from examples.ordering.shipping import TABLES
from tests.acceptance.workers import crew
from tests.support.waiting import eventually

ORDERS = 120
KILLS = 10


async def test_ledger_balances_after_ten_kills(dsn: str, admin_dsn: str, admin: Connection, tmp_path: Path) -> None:
    """
    Three workers, ten of them killed as the orders come in and their deadlines pass.

    Every order is shipped, cancelled or rejected; stock, parcels and money agree with that to the cent.
    """
    rng = Random(11)
    await admin.execute(f"{TABLES}; GRANT INSERT ON shipment, booking TO PUBLIC")

    books: Connection = await asyncpg.connect(admin_dsn)

    async def jobs_done(count: int) -> bool:
        return await admin.fetchval("SELECT count(*) FROM eventflow.job_history") >= count

    with crew(dsn, tmp_path, "examples.ordering.app:flow") as workers:
        alive = [workers.add() for _ in range(3)]
        async with flow.open(dsn) as app, anyio.create_task_group() as group:

            async def kill() -> None:
                for number in range(1, KILLS + 1):
                    await eventually(lambda number=number: jobs_done(number * ORDERS // 4), within=60)
                    alive.pop(rng.randrange(len(alive))).kill()
                    alive.append(workers.add())

            group.start_soon(kill)
            orders, items = await shop(app, ORDERS, rng)
            left: list[str] = ["not looked yet"]

            async def balances() -> bool:
                left[:] = await differences(app, orders, items, books)
                return not left

            try:
                await eventually(balances, within=90, every=0.5)
            except AssertionError as exc:
                states = await admin.fetch("SELECT name, state, count(*) FROM eventflow.any_job GROUP BY 1, 2")
                raise AssertionError("\n".join([*left, *map(str, states)])) from exc
            finally:
                await books.close()
        killed = sum(worker.process.poll() is not None for worker in workers.workers)
        assert killed == KILLS
