"""Checks the books: every order came to one end, and stock, parcels and money agree with it."""

from collections import Counter
from collections.abc import Sequence

import asyncpg

from eventflow import App
from examples.ordering.ids import ItemId, OrderId
from examples.ordering.orders import Order, OrderState
from examples.ordering.stock import Item

ENDS = (OrderState.SHIPPED, OrderState.CANCELLED, OrderState.REJECTED)


async def differences(
    app: App, orders: Sequence[OrderId], items: dict[ItemId, int], connection: "asyncpg.Connection[asyncpg.Record]"
) -> list[str]:
    """
    What does not agree, in words; empty if the ledger balances.

    Args:
        app: The application.
        orders: All orders.
        items: How many of each item have ever arrived.
        connection: To the tables of shipping and bookkeeping.
    """
    found: list[str] = []
    shipped: Counter[str] = Counter()
    revenue = 0
    for order_id in orders:
        order = await app.aggregates.load(Order, order_id)
        if order.state not in ENDS:
            found.append(f"{order_id} is still {order.state}")
        if order.state is OrderState.SHIPPED:
            shipped[str(order.item_id)] += order.quantity
            revenue += order.cents
    for item_id, arrived in items.items():
        item = await app.aggregates.load(Item, item_id)
        if item.available + shipped[item_id] != arrived:
            found.append(f"{item_id}: {item.available} left and {shipped[item_id]} shipped of {arrived}")
    rows = await connection.fetch("SELECT item_id, sum(quantity)::int AS quantity FROM shipment GROUP BY item_id")
    parcels = {row["item_id"]: row["quantity"] for row in rows}
    if parcels != dict(shipped):
        found.append(f"parcels {parcels}, shipped orders {dict(shipped)}")
    booked = await connection.fetchval("SELECT coalesce(sum(cents), 0)::bigint FROM booking")
    if booked != revenue:
        found.append(f"{booked} cents were booked, orders for {revenue} were shipped")
    return found
