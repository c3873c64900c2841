"""Reading all events among writers at random: each once, each stream in order, however they interleave."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from random import Random

import anyio
import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from eventflow import SystemClock
from eventflow.postgres import Connection
from tests.support.all_events import TAKE_XID, Position, Reader, Writer, writer
from tests.support.event_stores import EventStores, stream
from tests.support.postgres import Database

CLOCK = SystemClock()


WRITERS = 16
TRANSACTIONS = 12


class Crowd:
    """
    Writers who append to the same few streams in transactions of any shape.

    Attributes:
        running: Writers that have not finished.
        committed: What they have committed.
    """

    def __init__(self, stores: EventStores, database: Database) -> None:
        self.running = WRITERS
        self.committed: list[Position] = []
        self._stores = stores
        self._database = database
        self._streams = [stream(f"order-{number}") for number in range(6)]

    async def write(self, seed: int) -> None:
        """Write as one of them."""
        rng = Random(seed)
        async with writer(self._stores, self._database) as one:
            for _ in range(TRANSACTIONS):
                await self._transaction(one, rng)
        self.running -= 1

    async def _transaction(self, one: Writer, rng: Random) -> None:
        await one.execute("BEGIN")
        if rng.random() < 0.3:
            await one.execute(TAKE_XID)
            await self._pause(rng)
        written: list[Position] = []
        streams = sorted(rng.sample(range(len(self._streams)), k=rng.randint(1, 3)))  # sorted: no deadlocks
        for number in streams:
            if rng.random() < 0.2:
                await one.execute("SAVEPOINT here")
                await one.append_next(self._streams[number])
                await self._pause(rng)
                await one.execute("ROLLBACK TO here")
            written += [await one.append_next(self._streams[number]) for _ in range(rng.randint(1, 3))]
        await self._pause(rng)
        if rng.random() < 0.2:
            await one.execute("ROLLBACK")
        else:
            await one.execute("COMMIT")
            self.committed += written

    async def _pause(self, rng: Random) -> None:
        await CLOCK.sleep(rng.choice((0, 0.001, 0.01)))


async def test_readers_among_many_writers_see_every_event_once(stores: EventStores, database: Database) -> None:
    """16 writers pause between insert and commit, roll back, and take transaction ids long before they append."""
    crowd, idle = Crowd(stores, database), stream()
    readers = [Reader(stores, limit=limit) for limit in (1, 5, 1000)]

    async def read(reader: Reader) -> None:
        while crowd.running:
            await reader.read()

    async with writer(stores, database) as slow:
        await slow.execute("BEGIN")
        await slow.append(idle, 1)
        async with anyio.create_task_group() as group:
            for reader in readers:
                group.start_soon(read, reader)
            for number in range(WRITERS):
                group.start_soon(crowd.write, number)
        for reader in readers:
            await reader.read_to_end()
            assert sorted(reader.shown) == sorted(crowd.committed)
        await slow.execute("COMMIT")

    assert len(crowd.committed) > 300
    for reader in readers:
        assert await reader.read_to_end() == [(idle.aggregate_id, 1)]


class Step(msgspec.Struct, frozen=True):
    """
    One call.

    Attributes:
        who: Number of the connection, or of the reader.
        where: Number of the stream.
    """

    call: str
    who: int
    where: int


CONNECTIONS = 4
STREAMS = 4
CALLS = (
    *("begin", "begin_early", "append", "append", "append", "append", "commit", "commit", "commit"),
    *("take_xid", "savepoint", "rollback_to", "abort", "read", "read", "read", "read_to_end"),
)
STEPS = st.lists(
    st.builds(
        Step,
        call=st.sampled_from(CALLS),
        who=st.integers(0, CONNECTIONS - 1),
        where=st.integers(0, STREAMS - 1),
    ),
    min_size=30,
    max_size=60,
)


class Open:
    """What a connection has written and not committed; the savepoints say how much of it was written before them."""

    def __init__(self) -> None:
        self.written: list[Position] = []
        self.savepoints: list[int] = []


class Model:
    """What must be true, kept beside the store."""

    def __init__(self, stores: EventStores, writers: Sequence[Writer]) -> None:
        self._streams = [stream() for _ in range(STREAMS)]
        self._writers = writers
        self._open: list[Open | None] = [None] * len(writers)
        self._committed: set[Position] = set()
        self._readers = [Reader(stores, limit=limit) for limit in (1, 2, 100)]

    async def take(self, step: Step) -> None:
        """Make a call, if it can be made, and check what is seen."""
        who = step.who % len(self._writers)
        if step.call.startswith("read"):
            await self._read(self._readers[step.who % len(self._readers)], to_end=step.call == "read_to_end")
            return
        transaction = self._open[who]
        if transaction is None:
            transaction = self._open[who] = Open()
            await self._writers[who].execute("BEGIN")
            if step.call == "begin_early":
                await self._take_xid(who, transaction, step)
        elif not step.call.startswith("begin"):
            await getattr(self, f"_{step.call}")(who, transaction, step)

    async def _take_xid(self, who: int, transaction: Open, step: Step) -> None:
        await self._writers[who].execute(TAKE_XID)

    async def _append(self, who: int, transaction: Open, step: Step) -> None:
        others = [other for other in self._open if other is not None and other is not transaction]
        taken = {owner for other in others for owner, _ in other.written}  # it would wait for the other's end
        free = [each for each in self._streams if each.aggregate_id not in taken]
        if free:
            to = free[step.where % len(free)]
            written = [owner for owner, _ in (*self._committed, *transaction.written)]
            version = written.count(to.aggregate_id) + 1
            await self._writers[who].append(to, version)
            transaction.written.append((to.aggregate_id, version))

    async def _savepoint(self, who: int, transaction: Open, step: Step) -> None:
        await self._writers[who].execute(f"SAVEPOINT s{len(transaction.savepoints)}")
        transaction.savepoints.append(len(transaction.written))

    async def _rollback_to(self, who: int, transaction: Open, step: Step) -> None:
        if transaction.savepoints:
            number = step.where % len(transaction.savepoints)
            await self._writers[who].execute(f"ROLLBACK TO s{number}")
            del transaction.written[transaction.savepoints[number] :]
            del transaction.savepoints[number + 1 :]

    async def _commit(self, who: int, transaction: Open, step: Step) -> None:
        await self._writers[who].execute("COMMIT")
        self._committed.update(transaction.written)
        self._open[who] = None

    async def _abort(self, who: int, transaction: Open, step: Step) -> None:
        await self._writers[who].execute("ROLLBACK")
        self._open[who] = None

    async def _read(self, reader: Reader, *, to_end: bool) -> None:
        is_last = await reader.read()
        while to_end and not is_last:
            is_last = await reader.read()
        assert set(reader.shown) <= self._committed
        if is_last:
            assert set(reader.shown) == self._committed, "something committed is not shown"

    async def end(self) -> None:
        """End what is open; all readers see all there is."""
        for who, transaction in enumerate(self._open):
            if transaction is not None:
                await self._commit(who, transaction, Step("commit", who, 0))
        for reader in self._readers:
            await self._read(reader, to_end=True)
            assert len(reader.shown) == len(self._committed)


@pytest.fixture
async def writers(stores: EventStores, database: Database) -> AsyncGenerator[list[Writer]]:
    """As many as there can be at once."""
    async with AsyncExitStack() as opened:
        yield [await opened.enter_async_context(writer(stores, database)) for _ in range(CONNECTIONS)]


@settings(
    max_examples=100,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would take minutes here
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS, connections=st.integers(2, CONNECTIONS))
async def test_every_interleaving_is_read_once_and_in_order(
    admin: Connection, stores: EventStores, writers: list[Writer], steps: list[Step], connections: int
) -> None:
    """Whatever transactions do and whenever a page is read: what is committed is shown, once, streams in order."""
    await admin.execute("TRUNCATE eventflow.event")
    model = Model(stores, writers[:connections])
    try:
        for step in steps:
            await model.take(step)
        await model.end()
    finally:
        for each in writers:
            if each.connection.is_in_transaction():
                await each.execute("ROLLBACK")
