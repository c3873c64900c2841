"""Commits that want two lines at once, that of the event and that of what is appended, never wait in a circle."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import asyncpg

from eventflow import (
    Command,
    CommandContext,
    Event,
    EventFlow,
    Identity,
    Saga,
    Services,
    applies,
    handles,
)
from eventflow.postgres import Connection
from tests.support.tallies import all_is_done, commits_wait
from tests.support.waiting import eventually, until


class MatchId(Identity):
    """Of both players of a match."""


class Pinged(Event):
    """The ball is with the other one, who plays it so many times more."""

    left: int


class Ponged(Event):
    """And back."""

    left: int


class Serve(Command[MatchId]):
    """Play the ball first, so many of them."""

    balls: int = 1
    left: int = 0


class Both(Command[MatchId]):
    """The same for the other player."""

    balls: int = 1
    left: int = 0


class Match:
    """Holds both players before they commit, and says how they do it."""

    def __init__(self, *, in_transaction: bool, is_open: bool = False) -> None:
        self.in_transaction = in_transaction
        self.arrived = 0
        self.gate = anyio.Event()
        if is_open:
            self.gate.set()

    async def stroke(self, context: CommandContext) -> None:
        """One of them plays the ball."""
        if self.in_transaction:
            await context.transaction()
        self.arrived += 1
        await self.gate.wait()


class Ping(Saga[MatchId]):
    """Answers each ball of the other."""

    strokes: int = 0

    @handles(starts=True)
    async def ponged(self, event: Ponged, context: CommandContext) -> None:
        await (await context.services.aget(Match)).stroke(context)
        if event.left:
            self.emit(Pinged(left=event.left - 1))

    @applies
    def _pinged(self, event: Pinged) -> None:
        self.strokes += 1


class Pong(Saga[MatchId]):
    """Too."""

    strokes: int = 0

    @handles(starts=True)
    async def pinged(self, event: Pinged, context: CommandContext) -> None:
        await (await context.services.aget(Match)).stroke(context)
        if event.left:
            self.emit(Ponged(left=event.left - 1))

    @applies
    def _ponged(self, event: Ponged) -> None:
        self.strokes += 1


def match_flow(match: Match) -> EventFlow:
    """Two sagas, each of which follows the other."""

    @asynccontextmanager
    async def lifespan(services: Services) -> AsyncGenerator[None]:
        services.register_value(Match, match)
        yield

    flow = EventFlow("match", lifespan=lifespan)
    flow.saga(Ping)
    flow.saga(Pong)

    @flow.command_handler
    async def serve(player: Ping, command: Serve, context: CommandContext) -> None:
        for _ in range(command.balls):
            player.emit(Pinged(left=command.left))

    @flow.command_handler
    async def serve_too(player: Pong, command: Both, context: CommandContext) -> None:
        for _ in range(command.balls):
            player.emit(Ponged(left=command.left))

    return flow


async def deadlocks(admin: Connection) -> int:
    """How many the database has seen; those of sessions that have ended are in it for sure."""

    async def alone() -> bool:
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        return bool(await admin.fetchval(f"{others} AND backend_type = 'client backend'") == 0)

    await eventually(alone)
    found: int = await admin.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    return found


BLOCKED_BY = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pg_blocking_pids(pid) && ARRAY[$1::integer]
"""
LOCK = "SELECT FROM eventflow.event_line WHERE subscriber = $1 FOR UPDATE"


async def test_commits_that_want_the_same_two_lines_take_them_in_one_order(
    dsn: str, admin_dsn: str, admin: Connection
) -> None:
    """Each stands in the line that the other appends to; both have to wait, once for the one and once for the other."""
    before, match, players = await deadlocks(admin), Match(in_transaction=True), MatchId.new()
    second = await asyncpg.connect(admin_dsn)
    async with match_flow(match).open(dsn) as app:
        await app.commands.publish(Serve(aggregate_id=players, left=1))
        await app.commands.publish(Both(aggregate_id=players, left=1))
        async with app.worker():
            await until(lambda: match.arrived == 2)
            async with second.transaction():
                await second.execute(LOCK, "Pong")
                async with admin.transaction():
                    await admin.execute(LOCK, "Ping")
                    match.gate.set()
                    await commits_wait(admin, 2)

                async def one_has_the_first() -> bool:
                    waiting = await admin.fetchval(BLOCKED_BY, second.get_server_pid())
                    return bool(waiting) and not await admin.fetchval(BLOCKED_BY, admin.get_server_pid())

                await eventually(one_has_the_first)
                await commits_wait(admin, 2)
            await all_is_done(admin)
    await second.close()
    assert await deadlocks(admin) == before


async def test_many_such_commits_that_share_transactions_never_wait_in_a_circle(dsn: str, admin: Connection) -> None:
    """Two processes, a dozen matches, several balls at a time."""
    before, match, matches = await deadlocks(admin), Match(in_transaction=False, is_open=True), range(12)
    flow = match_flow(match)
    async with flow.open(dsn) as here, flow.open(dsn) as there, here.worker(), there.worker():
        players = [MatchId.new() for _ in matches]
        async with anyio.create_task_group() as group:
            for number, each in enumerate(players):
                group.start_soon(here.commands.publish, Serve(aggregate_id=each, balls=3, left=number % 4))
                group.start_soon(there.commands.publish, Both(aggregate_id=each, balls=3, left=3 - number % 4))
        await all_is_done(admin)
        strokes: list[int] = []
        for each in players:
            strokes.append((await here.aggregates.load(Ping, each)).strokes)
            strokes.append((await here.aggregates.load(Pong, each)).strokes)
    # Three balls of each, and what is left of both sides, in turns
    assert strokes == [n for number in matches for n in _strokes(number % 4, 3 - number % 4)]
    assert await deadlocks(admin) == before


def _strokes(ping: int, pong: int) -> tuple[int, int]:
    """How often each plays: its own balls come back every second time, and so do the other's."""
    return 3 * (1 + ping // 2 + (pong + 1) // 2), 3 * (1 + pong // 2 + (ping + 1) // 2)
