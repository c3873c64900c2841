"""Commands that are cancelled: nothing of them is stored, or all."""

from typing import Any

import anyio
import pytest

from eventflow import CommandBus, CommandContext, DuplicateOperationError, EventFlow, StreamId
from eventflow.eventstore import Changes, History, ReceiptKey
from eventflow.jobs import InMemoryCommits, UnitsOfWork
from tests.unit.bench import Act, Bench, PlaceOrder, others_rest
from tests.unit.contended import LATER, ORDER, STREAM, Contended, PayOrder, bench_of, names, pay, place
from tests.unit.test_aggregate import Order


async def test_waiting_for_others_pauses_is_cancelled_with_the_caller() -> None:
    """A cancelled publish stores nothing, and the next in line goes on."""
    inside, waiting = anyio.Event(), anyio.CancelScope()

    async def handle(order: Order, command: PayOrder, context: CommandContext) -> int:
        if command.cents == 1:
            inside.set()
            await anyio.sleep_forever()
        return await pay(order, command, context)

    bench = bench_of(handle)

    async def publish_and_give_up() -> None:
        with waiting:
            await bench.bus.publish(PayOrder(aggregate_id=ORDER, cents=1))

    async with anyio.create_task_group() as group:
        group.start_soon(publish_and_give_up)
        await inside.wait()
        group.start_soon(bench.bus.publish, PayOrder(aggregate_id=ORDER, cents=2))
        await others_rest()
        assert await names(bench) == []
        waiting.cancel()

    [event] = await bench.events.load(STREAM)
    assert event.data == '{"cents":2}'


@pytest.mark.parametrize("where", ["loading", "handling", "told"])
async def test_command_is_cancelled_up_to_its_commit_and_whole_from_there(where: str) -> None:
    """Before it is written, nothing of it is; and then all of it."""
    reached = anyio.Event()

    async def pause(here: str) -> None:
        if here == where:
            reached.set()
        await anyio.lowlevel.checkpoint()

    class SlowStore(Contended):
        async def look(self, stream: StreamId | None, receipt: ReceiptKey, **options: Any) -> History:
            await pause("loading")
            return await super().look(stream, receipt, **options)

    async def handle(order: Order, command: PlaceOrder, context: CommandContext) -> int:
        context.schedule(Act(), delay=LATER)
        result = await place(order, command, context)
        await pause("handling")
        return result

    async def tell(changes: Changes) -> None:
        await pause("told")

    flow = EventFlow("execution")
    flow.command_handler(handle)
    bench = Bench(flow, events=SlowStore)
    bench.units = UnitsOfWork(bench.encoder, bench.events, InMemoryCommits(bench.store, bench.events), committed=tell)
    bench.bus = CommandBus(bench.model.handlers, bench.bus._execution, new_unit=bench.units)
    command = PlaceOrder(aggregate_id=ORDER, total_cents=1)

    async with anyio.create_task_group() as group:
        group.start_soon(bench.bus.publish, command)
        await reached.wait()
        group.cancel_scope.cancel()

    written = where == "told"
    assert (len(await names(bench)), len(await bench.store.find())) == (written, written)
    if written:
        with pytest.raises(DuplicateOperationError):
            await bench.bus.publish(command)
    else:
        assert await bench.bus.publish(command) == 0
