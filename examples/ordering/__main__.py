"""Places some orders, pays most of them, and checks the books: ``python -m examples.ordering``, beside a worker."""

import argparse
import asyncio
import os
from random import Random

import asyncpg

from eventflow import App, DomainError
from examples.ordering.app import flow
from examples.ordering.ids import ItemId, OrderId
from examples.ordering.ledger import differences
from examples.ordering.orders import PAY_WITHIN, PayOrder, PlaceOrder
from examples.ordering.shipping import TABLES
from examples.ordering.stock import AddStock

PAID_SHARE = 0.8


async def shop(app: App, number: int, rng: Random) -> tuple[list[OrderId], dict[ItemId, int]]:
    """Place so many orders, a few of them for more than there is; returns them, and what had arrived of each item."""
    items = {ItemId.new(): number for _ in range(3)}
    for item_id, quantity in items.items():
        await app.commands.publish(AddStock(aggregate_id=item_id, quantity=quantity))
    orders = [OrderId.new() for _ in range(number)]
    for order_id in orders:
        order = PlaceOrder(
            aggregate_id=order_id,
            item_id=rng.choice(list(items)),
            quantity=rng.choice([1, 2, 3, number + 1]),
            cents=rng.randint(100, 10_000),
        )
        await app.commands.publish(order)
        if rng.random() < PAID_SHARE:
            await pay(app, order_id)
        elif rng.random() < 0.5:  # at the very moment of the deadline
            await app.commands.schedule(PayOrder(aggregate_id=order_id), delay=PAY_WITHIN)
    return orders, items


async def pay(app: App, order_id: OrderId) -> None:
    """Pay now; an order may have been rejected by then."""
    try:
        await app.commands.publish(PayOrder(aggregate_id=order_id))
    except DomainError as exc:
        print(exc)


async def main(number: int) -> None:
    """Shop, wait until the books are closed, and say what they say."""
    connection = await asyncpg.connect(os.environ["EVENTFLOW_DSN"])
    await connection.execute(TABLES)
    async with flow.open() as app:
        orders, items = await shop(app, number, Random())
        print(f"{number} orders are placed; waiting for the workers")
        while found := await differences(app, orders, items, connection):
            await asyncio.sleep(1)
            print(f"{len(found)} differences left")
    print("the ledger balances")
    await connection.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, default=50)
    asyncio.run(main(parser.parse_args().orders))
