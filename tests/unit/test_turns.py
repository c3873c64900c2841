"""Turns: commands on one aggregate queue up within a process."""

import anyio
import pytest

from eventflow import StreamId
from eventflow.commands.turns import Turns
from tests.unit.bench import others_rest

ONE, OTHER = StreamId("Order", "1"), StreamId("Order", "2")


async def test_one_at_a_time_in_order_of_arrival() -> None:
    """Whoever comes while a stream is taken waits behind those who came before."""
    turns, order, inside = Turns(), list[int](), 0

    async def take(number: int) -> None:
        nonlocal inside
        async with turns.turn(ONE):
            inside += 1
            assert inside == 1
            order.append(number)
            await others_rest()
            inside -= 1

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(take, number)

    assert order == list(range(20))
    assert len(turns) == 0


async def test_streams_do_not_wait_for_each_other() -> None:
    """Nor does who has no stream at all."""
    turns, done = Turns(), anyio.Event()

    async def hold() -> None:
        async with turns.turn(ONE):
            await done.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(hold)
        await others_rest()
        async with turns.turn(OTHER), turns.turn(None):
            assert len(turns) == 2
        done.set()


async def test_who_has_a_turn_waits_for_no_other() -> None:
    """Neither for itself, nor for one who waits for it in turn; its own turn stays its own."""
    turns, both = Turns(), anyio.Event()
    order: list[str] = []

    async def take(name: str, first: StreamId, second: StreamId) -> None:
        async with turns.turn(first):
            order.append(name)
            if len(order) == 2:
                both.set()
            await both.wait()
            async with turns.turn(second), turns.turn(first), turns.turn(second):
                order.append(name)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(take, "a", ONE, OTHER)
            group.start_soon(take, "b", OTHER, ONE)

    assert sorted(order) == ["a", "a", "b", "b"]
    assert len(turns) == 0


async def test_turn_ends_with_its_block() -> None:
    """Also after an error; who had one waits like everybody else the next time."""
    turns, taken, may_end, got = Turns(), anyio.Event(), anyio.Event(), list[str]()
    with pytest.raises(ValueError, match="no"):
        async with turns.turn(ONE):
            raise ValueError("no")

    async def hold() -> None:
        async with turns.turn(ONE):
            taken.set()
            await may_end.wait()
            got.append("the other")

    async with anyio.create_task_group() as group:
        group.start_soon(hold)
        await taken.wait()
        may_end.set()
        async with turns.turn(ONE):
            got.append("again")

    assert got == ["the other", "again"]
    assert len(turns) == 0


async def test_cancelled_while_waiting_leaves_nothing_behind() -> None:
    """Those behind move up, and nothing remains of a stream that nobody wants."""
    turns, first_may_end, order = Turns(), anyio.Event(), list[str]()
    scope = anyio.CancelScope()

    async def hold() -> None:
        async with turns.turn(ONE):
            await first_may_end.wait()
            order.append("first")

    async def give_up() -> None:
        with scope:
            async with turns.turn(ONE):
                order.append("cancelled")

    async def wait() -> None:
        async with turns.turn(ONE):
            order.append("last")

    async with anyio.create_task_group() as group:
        for step in (hold, give_up, wait):
            group.start_soon(step)
            await others_rest()
        scope.cancel()
        await others_rest()
        first_may_end.set()

    assert order == ["first", "last"]
    assert len(turns) == 0
