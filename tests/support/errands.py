"""Errands that fail, wait, write and lead to others, and boards with subscribers."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Literal

import anyio
import msgspec

from eventflow import (
    Aggregate,
    Command,
    CommandContext,
    DomainError,
    Event,
    EventFlow,
    Identity,
    Job,
    JobContext,
    JobState,
    OnError,
    RetryPolicy,
    Services,
    SourceId,
    SubscriberContext,
    applies,
)
from eventflow.scheduling import ScheduleOptions

MAX_ATTEMPTS = 3
HALF_AN_HOUR = timedelta(minutes=30)
CREATE_EFFECTS = """
CREATE TABLE effect (number bigint GENERATED ALWAYS AS IDENTITY, what text NOT NULL);
GRANT SELECT, INSERT ON effect TO PUBLIC
"""
WRITE_EFFECT = "INSERT INTO effect (what) VALUES ($1)"


class When(Enum):
    """When a job is due."""

    NOW = "now"
    LONG_AGO = "long ago"
    SOON = "soon"
    LATER = "later"
    """Long after the test."""

    @property
    def options(self) -> ScheduleOptions:
        """For any call that schedules."""
        return _OPTIONS[self]


_OPTIONS: dict[When, ScheduleOptions] = {
    When.NOW: {"delay": timedelta(0)},
    When.LONG_AGO: {"at": datetime(2001, 1, 1, tzinfo=UTC)},
    When.SOON: {"delay": timedelta(milliseconds=80)},
    When.LATER: {"delay": timedelta(hours=1)},
}


class Plan(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """
    What an errand does.

    Attributes:
        fails: So many attempts.
        ends: What the attempt after them does.
        writes: A row in its transaction.
        waits: At the gate, after it has written and scheduled.
        leads_to: Errands that it schedules, in every attempt.
        when: These are due.
    """

    fails: int = 0
    ends: Literal["well", "refused", "ignored"] = "well"
    writes: bool = False
    waits: bool = False
    leads_to: tuple["Plan", ...] = ()
    when: When = When.NOW

    @property
    def fate(self) -> tuple[JobState, int]:
        """How it ends, and with which attempt."""
        if self.fails >= MAX_ATTEMPTS:
            return JobState.DEAD, MAX_ATTEMPTS
        return _ENDINGS[self.ends], self.fails + 1


_ENDINGS = {"well": JobState.SUCCEEDED, "refused": JobState.DEAD, "ignored": JobState.IGNORED}


class UnimportantError(Exception):
    """Counts as done."""


class Errand(Job):
    """Follows its plan."""

    label: str
    plan: Plan

    async def execute(self, context: JobContext) -> None:
        desk, plan = await context.services.aget(Desk), self.plan
        with desk.busy(self.label, context.attempt):
            for follower in self.followers():
                context.schedule(follower, **plan.when.options)
            if plan.writes:
                await write(context, self.label)
            if plan.waits:
                await desk.gate.wait()
            if context.attempt <= plan.fails:
                raise ConnectionResetError
            if plan.ends == "refused":
                raise DomainError("refused")
            if plan.ends == "ignored":
                raise UnimportantError

    def followers(self) -> "list[Errand]":
        """What it leads to."""
        return [Errand(label=f"{self.label}.{n}", plan=plan) for n, plan in enumerate(self.plan.leads_to, start=1)]


class BoardId(Identity):
    """Of a board."""


class Posted(Event):
    """By which operation."""

    operation: str


class Board(Aggregate[BoardId]):
    """Counts its posts."""

    posts: int = 0

    @applies
    def _posted(self, event: Posted) -> None:
        self.posts += 1


class Post(Command[BoardId, int]):
    """
    Posts, and returns the board's version before.

    Attributes:
        posts: So many times.
        refused: Or it is refused.
        writes: A row in its transaction.
        leads_to: An errand that it schedules.
    """

    posts: int
    refused: bool
    writes: bool
    leads_to: Plan | None

    def followers(self) -> list[Errand]:
        """What it leads to."""
        return [] if self.leads_to is None else [Errand(label=f"{self.source_id}.1", plan=self.leads_to)]


class Draft(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """A command, but for the ids in it."""

    board: int
    posts: int = 1
    refused: bool = False
    writes: bool = False
    leads_to: Plan | None = None

    def about(self, board: BoardId, source_id: SourceId) -> Post:
        """The command."""
        return Post(
            aggregate_id=board,
            source_id=source_id,
            posts=self.posts,
            refused=self.refused,
            writes=self.writes,
            leads_to=self.leads_to,
        )


class Desk:
    """
    What handlers did in this process.

    Attributes:
        started: Attempts of errands, by label, in order.
        active: How many errands run at present.
        heard: Events that the inline subscriber got.
        gate: Errands wait at it.
    """

    def __init__(self) -> None:
        self.started: dict[str, list[int]] = {}
        self.active = 0
        self.heard: list[tuple[str, int]] = []
        self.gate = anyio.Event()

    @asynccontextmanager
    async def lifespan(self, services: Services) -> AsyncGenerator[None]:
        """Offers itself to handlers."""
        services.register_value(Desk, self)
        yield

    def starts(self, label: str) -> int:
        """How often an errand was started."""
        return len(self.started.get(label, []))

    def busy(self, label: str, attempt: int) -> "_Busy":
        """While an attempt runs."""
        self.started.setdefault(label, []).append(attempt)
        return _Busy(self)


class _Busy:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def __enter__(self) -> None:
        self._desk.active += 1

    def __exit__(self, *exc: object) -> None:
        self._desk.active -= 1


def errand_flow(desk: Desk) -> EventFlow:
    """Errands and boards; one subscriber for each event, one in order, one inline."""
    flow = EventFlow("errands", lifespan=desk.lifespan)
    retry = RetryPolicy(max_attempts=MAX_ATTEMPTS, base=timedelta(0), on={UnimportantError: OnError.IGNORE})
    flow.job(retry=retry)(Errand)

    @flow.command_handler
    async def post(board: Board, command: Post, context: CommandContext) -> int:
        for follower in command.followers():
            context.schedule(follower)
        if command.writes:
            await write(context, command.source_id)
        for _ in range(command.posts):
            board.emit(Posted(operation=command.source_id))
        if command.refused:
            raise DomainError("refused")
        return board.stream_version

    @flow.subscriber(retry=retry)
    async def each(event: Posted, context: SubscriberContext) -> None:
        follower = follower_of(context.aggregate_id, context.stream_version)
        context.schedule(follower)
        await take("each", context)

    @flow.subscriber(retry=retry, ordered=True)
    async def line(event: Posted, context: SubscriberContext) -> None:
        await take("line", context)

    @flow.subscriber(inline=True)
    async def hear(event: Posted, context: SubscriberContext) -> None:
        desk.heard.append((context.aggregate_id, context.stream_version))

    return flow


def follower_of(board: str, version: int) -> Errand:
    """What a subscriber schedules for an event."""
    return Errand(label=f"after {board} {version}", plan=Plan())


def subscriber_attempts(version: int) -> int:
    """With which attempt subscribers are done with an event."""
    return 2 if version % 3 == 0 else 1


async def take(subscriber: str, context: SubscriberContext) -> None:
    """What subscribers do with an event."""
    await write(context, f"{subscriber} {context.aggregate_id} {context.stream_version}")
    if context.attempt < subscriber_attempts(context.stream_version):
        raise ConnectionResetError


async def write(context: JobContext | CommandContext | SubscriberContext, what: str) -> None:
    """Leave a row in the transaction of a handler."""
    await (await context.transaction()).execute(WRITE_EFFECT, str(what))
