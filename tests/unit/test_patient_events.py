"""Jobs read again while the database is away, and not for ever."""

from collections.abc import Sequence
from math import inf
from random import Random
from typing import Any

import pytest

from eventflow import (
    CommandContext,
    DatabaseUnavailableError,
    EventFlow,
    JobRecord,
    JobState,
    ManualClock,
    SubscriberContext,
)
from eventflow.eventstore import History, InMemoryEventStore, ReceiptKey, StoredEvent, StreamId
from eventflow.eventstore.patient import LONGEST_PAUSE_SECONDS, PATIENCE_SECONDS, SLOW_SECONDS, PatientEventStore
from tests.unit.bench import OrderId, PlaceOrder
from tests.unit.test_aggregate import Order, OrderPlaced

STREAM = StreamId("Order", "order-1")
RECEIPT = ReceiptKey("Order", "order-1", "operation-1")


class HastyClock(ManualClock):
    """Nobody has to wait: it is later at once."""

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)


class Away(InMemoryEventStore):
    """
    Does not answer, so many times.

    Attributes:
        asked: How often somebody has.
        seconds: So long it takes.
    """

    def __init__(self, clock: ManualClock, refusals: float) -> None:
        super().__init__(clock)
        self.clock = clock
        self.refusals = refusals
        self.seconds = 0.0
        self.asked = 0

    async def load(self, stream: StreamId, **options: Any) -> Sequence[StoredEvent]:
        self.answer()
        return await super().load(stream, **options)

    async def look(self, stream: StreamId | None, receipt: ReceiptKey, **options: Any) -> History:
        self.answer()
        return await super().look(stream, receipt, **options)

    def answer(self) -> None:
        """Raises, unless it has done so often enough."""
        self.asked += 1
        self.clock.advance(self.seconds)
        self.refusals -= 1
        if self.refusals >= 0:
            raise DatabaseUnavailableError("too many clients")


def patient(refusals: float) -> tuple[PatientEventStore, Away, HastyClock]:
    """A store that does not answer, and who reads from it."""
    clock = HastyClock()
    away = Away(clock, refusals)
    return PatientEventStore(away, clock=clock, rng=Random(1)), away, clock


async def test_what_is_not_answered_is_read_again() -> None:
    """Events of a stream, and what a command needs."""
    events, away, _ = patient(5)

    assert not (await events.look(STREAM, RECEIPT)).events
    assert away.asked == 6
    away.refusals = 2
    assert await events.load(STREAM) == []
    assert away.asked == 9


async def test_what_is_never_answered_fails() -> None:
    """A job whose stream cannot be read must not keep its slot."""
    events, away, clock = patient(inf)

    with pytest.raises(DatabaseUnavailableError):
        await events.look(STREAM, RECEIPT)

    assert PATIENCE_SECONDS <= clock.monotonic() < PATIENCE_SECONDS + LONGEST_PAUSE_SECONDS
    assert away.asked < 100


async def test_what_takes_long_is_read_twice() -> None:
    """A stream that is too long for a statement must not keep others from theirs."""
    events, away, _ = patient(inf)
    away.seconds = SLOW_SECONDS

    with pytest.raises(DatabaseUnavailableError):
        await events.load(STREAM)

    assert away.asked == 2


async def test_a_transaction_that_has_failed_is_not_asked_again() -> None:
    """All of it would have to be done again."""
    events, away, _ = patient(1)

    with pytest.raises(DatabaseUnavailableError):
        await events.look(STREAM, RECEIPT, connection=object())

    assert away.asked == 1


async def test_no_job_of_commands_and_subscribers_fails_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One attempt is enough; who publishes a command directly is told."""
    flow, clock, seen = EventFlow("orders"), HastyClock(), list[int]()
    away = Away(clock, 0)

    @flow.command_handler
    async def place(order: Order, command: PlaceOrder, context: CommandContext) -> int:
        order.emit(OrderPlaced(total_cents=command.total_cents))
        return 0

    @flow.subscriber
    async def bill(event: OrderPlaced, context: SubscriberContext) -> None:
        seen.append(event.total_cents)

    async with flow.open("memory:", clock=clock) as app:
        for name in ("look", "load"):
            reads = getattr(InMemoryEventStore, name)

            async def read(*args: Any, reads: Any = reads, **options: Any) -> Any:
                away.answer()
                return await reads(*args, **options)

            monkeypatch.setattr(InMemoryEventStore, name, read)
        job_id = await app.commands.schedule(PlaceOrder(aggregate_id=OrderId.new(), total_cents=7))
        away.refusals = 3
        await app.run_due()
        away.refusals = 3
        await app.run_due()
        record = await app.jobs.get(job_id)
        away.refusals = 1
        with pytest.raises(DatabaseUnavailableError):
            await app.commands.publish(PlaceOrder(aggregate_id=OrderId.new(), total_cents=1))

    assert isinstance(record, JobRecord)
    assert (record.state, record.attempt, seen) == (JobState.SUCCEEDED, 1, [7])
