"""Pages: examples do together what the text says, and tables show what has been kept."""

from collections.abc import AsyncGenerator
from types import ModuleType

import pytest

from eventflow import ManualClock
from reliability.page import PAGE, page
from tests.support.examples import module, run_page


@pytest.fixture
async def pages() -> AsyncGenerator[tuple[ModuleType, ModuleType]]:
    """The README's program, and the page that continues it."""
    with module("shop") as shop, module("events") as events:
        await run_page("README.md", shop)
        await run_page("docs/events.md", events)
        yield shop, events


async def test_order_is_followed_by_its_fulfilment_to_the_end(
    pages: tuple[ModuleType, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    """The saga starts with the order, has a parcel packed, tells the customer, and is complete."""
    shop, events = pages
    async with shop.flow.open("memory:", clock=ManualClock()) as app:
        order_id = shop.OrderId.new()
        await app.commands.publish(shop.PlaceOrder(aggregate_id=order_id, total_cents=4200))
        await app.run_due()
        saga = await app.aggregates.load(events.Fulfilment, order_id)
        parcel = await app.aggregates.load(events.Parcel, saga.parcel_id)

    assert saga.is_completed
    assert parcel.order_id == order_id
    mails = ["thank you for 4200 cents", f"{order_id} is packed"]
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(f"mail: {text}, attempt 1" for text in mails)


def test_page_on_reliability_shows_what_has_been_kept() -> None:
    """``python -m reliability.page`` has been run since."""
    text = PAGE.read_text(encoding="utf-8")

    assert page(text) == text
