"""Jobs read again while the database is away, and not for ever."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, nullcontext
from math import inf
from random import Random
from typing import Any

import pytest

from eventflow import (
    CommandContext,
    DatabaseUnavailableError,
    EventFlow,
    JobId,
    JobRecord,
    JobState,
    ManualClock,
    SubscriberContext,
)
from eventflow.commands import Causation
from eventflow.eventstore import History, InMemoryEventStore, ReceiptKey, StreamId
from eventflow.jobs import UnitsOfWork
from eventflow.supervision import LONGEST_PAUSE_SECONDS, PATIENCE_SECONDS, SLOW_SECONDS, Patience
from tests.unit.bench import Bench, HastyClock, OrderId, PlaceOrder
from tests.unit.test_aggregate import Order, OrderPlaced


class Away:
    """
    A database that does not answer.

    Attributes:
        refusals: So many times.
        seconds: So long it takes.
        asked: How often somebody has.
    """

    def __init__(self, clock: ManualClock, refusals: float = 0) -> None:
        self._clock = clock
        self.refusals = refusals
        self.seconds = 0.0
        self.asked = 0

    async def read(self) -> str:
        """Raises, unless it has done so often enough."""
        self.asked += 1
        self._clock.advance(self.seconds)
        self.refusals -= 1
        if self.refusals >= 0:
            raise DatabaseUnavailableError("too many clients")
        return "an answer"


def patient(refusals: float) -> tuple[Patience, Away, HastyClock]:
    """Who reads, from a database that does not answer."""
    clock = HastyClock()
    return Patience(clock, Random(1)), Away(clock, refusals), clock


async def test_what_is_not_answered_is_read_again() -> None:
    """Until it is."""
    patience, away, _ = patient(5)

    assert await patience.read("stream", away.read) == "an answer"
    assert away.asked == 6


async def test_what_is_never_answered_fails() -> None:
    """A job whose stream cannot be read must not keep its slot."""
    patience, away, clock = patient(inf)

    with pytest.raises(DatabaseUnavailableError):
        await patience.read("stream", away.read)

    assert PATIENCE_SECONDS <= clock.monotonic() < PATIENCE_SECONDS + LONGEST_PAUSE_SECONDS
    assert away.asked < 100


async def test_what_takes_long_is_read_twice() -> None:
    """A stream that is too long for a statement must not keep others from theirs."""
    patience, away, _ = patient(inf)
    away.seconds = SLOW_SECONDS

    with pytest.raises(DatabaseUnavailableError):
        await patience.read("stream", away.read)

    assert away.asked == 2


class AwayEvents(InMemoryEventStore):
    """Events in a database that does not answer."""

    def __init__(self, clock: ManualClock, away: Away) -> None:
        super().__init__(clock)
        self._away = away

    async def look(self, stream: StreamId | None, receipt: ReceiptKey, **options: Any) -> History:
        await self._away.read()
        return await super().look(stream, receipt, **options)


class NoTransactions:
    """Transactions in which nothing happens."""

    @asynccontextmanager
    async def begin(self, *, read_committed: bool = False) -> AsyncGenerator[object]:
        yield object()

    async def lock(self, connection: Any, stream: StreamId) -> None:
        pass


@pytest.mark.parametrize("is_open", [False, True])
async def test_nobody_waits_for_a_job_that_has_a_transaction(is_open: bool) -> None:
    """It may have locked a stream, and keeps a connection from others."""
    patience, away, clock = patient(1)
    events, bench = AwayEvents(clock, away), Bench()
    units = UnitsOfWork(bench.encoder, events, bench.commits, transactions=NoTransactions(), patience=patience)
    unit = units.of_job(Causation("correlation", "cause"), JobId.new(), None)
    if is_open:
        await unit.transaction()

    with pytest.raises(DatabaseUnavailableError) if is_open else nullcontext():
        await unit.look(StreamId("Order", "order-1"), ReceiptKey("Order", "order-1", "operation-1"), None)

    assert away.asked == (1 if is_open else 2)
    await unit.close()


async def test_no_job_of_commands_and_subscribers_fails_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One attempt is enough; who publishes a command directly is told."""
    flow, clock, seen = EventFlow("orders"), HastyClock(), list[int]()
    away = Away(clock)

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
                await away.read()
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
