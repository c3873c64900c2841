"""The application whose workers are killed in the middle of commands; what its handlers do besides are rows."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg

from eventflow import (
    Aggregate,
    Command,
    CommandBus,
    CommandContext,
    Event,
    EventFlow,
    Identity,
    Job,
    JobContext,
    RetryPolicy,
    Saga,
    Services,
    SourceId,
    SubscriberContext,
    applies,
    starts_with,
)
from eventflow.failpoints import failpoint

WROTE = "handler.wrote"
RUNNING = "handler.running"

CREATE_TABLES = """
CREATE TABLE tried (source_id text NOT NULL);
CREATE TABLE own_row (source_id text NOT NULL);
GRANT SELECT, INSERT ON tried, own_row TO PUBLIC;
"""
OTHERS = 2
"""So many others write to the stream of :class:`Contended` while its handler runs: the next try locks it."""
LATER = timedelta(hours=1)


class Tries:
    """Counts how often a handler began, whatever came of it."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    async def note(self, source_id: str) -> int:
        """One more; returns how often by now. Here a process can be made to die."""
        await self._pool.execute("INSERT INTO tried (source_id) VALUES ($1)", source_id)
        times: int = await self._pool.fetchval("SELECT count(*) FROM tried WHERE source_id = $1", source_id)
        failpoint(RUNNING)
        return times


@asynccontextmanager
async def lifespan(services: Services) -> AsyncGenerator[None]:
    async with asyncpg.create_pool(os.environ.get("EVENTFLOW_DSN"), min_size=0, max_size=2) as pool:
        services.register_value(Tries, Tries(pool))
        yield


class LedgerId(Identity):
    """A ledger."""


class Noted(Event):
    number: int


class Bumped(Event):
    pass


class Expired(Event):
    pass


class Told(Event):
    """What a subscriber listens to."""

    fails: bool


class Asked(Event):
    """What a saga listens to."""

    fails: bool


class Answered(Event):
    pass


class Ledger(Aggregate[LedgerId]):
    notes: int = 0
    bumps: int = 0
    is_expired: bool = False

    def note(self) -> None:
        self.emit(Noted(number=self.notes + 1))

    def bump(self) -> None:
        self.emit(Bumped())

    def expire(self) -> None:
        self.emit(Expired())

    def tell(self, *, fails: bool) -> None:
        self.emit(Told(fails=fails))
        self.emit(Told(fails=False))

    def ask(self, *, fails: bool) -> None:
        self.emit(Asked(fails=fails))

    @applies
    def _said(self, _: Told | Asked) -> None:
        pass

    @applies
    def _noted(self, event: Noted) -> None:
        self.notes = event.number

    @applies
    def _bumped(self, _: Bumped) -> None:
        self.bumps += 1

    @applies
    def _expired(self, _: Expired) -> None:
        self.is_expired = True


class Plain(Command[LedgerId, int]):
    """Two events."""

    fails: bool = False


class Writing(Command[LedgerId, int]):
    """Two events, and a row of its own in their transaction."""

    fails: bool = False


class Spreading(Command[LedgerId, int]):
    """An event, two follow-up jobs and a deadline."""

    fails: bool = False


class Open(Command[LedgerId]):
    """An event, and a deadline that is due at once."""

    fails: bool = False


class Expire(Command[LedgerId, int]):
    """What happens at the deadline: an event and a follow-up job."""

    fails: bool = False


class Contended(Command[LedgerId, int]):
    """An event, a row of its own and a follow-up job, although others get in between."""

    fails: bool = False


class Bump(Command[LedgerId]):
    """What others do."""


class Tell(Command[LedgerId]):
    """Two events, that a subscriber takes one after the other."""

    fails: bool = False


class Ask(Command[LedgerId]):
    """An event that a saga begins with."""

    fails: bool = False


flow = EventFlow("crashing commands", lifespan=lifespan)
quickly = RetryPolicy(max_attempts=3, base=timedelta(milliseconds=20))


@flow.job
class FollowUp(Job):
    of: str

    async def execute(self, context: JobContext) -> None:
        pass


@flow.job(retry=quickly)
class WritingJob(Job):
    """No command at all: a row of its own in the transaction that completes it, and a follow-up job."""

    label: str
    fails: bool = False

    async def execute(self, context: JobContext) -> None:
        times = await (await context.services.aget(Tries)).note(self.label)
        await write_own_row(await context.transaction(), self.label)
        context.schedule(FollowUp(of=self.label))
        fail_at_first(self.fails, times)


@flow.command_handler(retry=quickly)
async def plain(ledger: Ledger, command: Plain, context: CommandContext) -> int:
    times = await note(context)
    ledger.note()
    ledger.note()
    fail_at_first(command.fails, times)
    return ledger.notes


@flow.command_handler(retry=quickly)
async def writing(ledger: Ledger, command: Writing, context: CommandContext) -> int:
    times = await note(context)
    await write_own_row(await context.transaction(), context.source_id)
    ledger.note()
    ledger.note()
    fail_at_first(command.fails, times)
    return ledger.notes


@flow.command_handler(retry=quickly)
async def spreading(ledger: Ledger, command: Spreading, context: CommandContext) -> int:
    times = await note(context)
    context.schedule(FollowUp(of=context.source_id))
    context.schedule(FollowUp(of=context.source_id))
    context.schedule_deadline("expiry", Expire(aggregate_id=ledger.id), delay=LATER)
    ledger.note()
    fail_at_first(command.fails, times)
    return ledger.notes


@flow.command_handler
async def open_ledger(ledger: Ledger, command: Open, context: CommandContext) -> None:
    context.schedule_deadline("expiry", Expire(aggregate_id=ledger.id, fails=command.fails))
    ledger.note()


@flow.command_handler(retry=quickly)
async def expire(ledger: Ledger, command: Expire, context: CommandContext) -> int:
    times = await note(context)
    context.schedule(FollowUp(of=context.source_id))
    ledger.expire()
    fail_at_first(command.fails, times)
    return ledger.notes


@flow.command_handler(retry=quickly)
async def contended(ledger: Ledger, command: Contended, context: CommandContext) -> int:
    fail_at_first(command.fails, await note(context))
    if ledger.bumps < OTHERS:
        bus = await context.services.aget(CommandBus)
        await bus.publish(Bump(aggregate_id=ledger.id, source_id=SourceId(f"bump {ledger.bumps} of {ledger.id}")))
    await write_own_row(await context.transaction(), context.source_id)
    context.schedule(FollowUp(of=context.source_id))
    ledger.note()
    return ledger.notes


@flow.command_handler
async def bump(ledger: Ledger, command: Bump, context: CommandContext) -> None:
    ledger.bump()


@flow.command_handler
async def tell(ledger: Ledger, command: Tell, context: CommandContext) -> None:
    ledger.tell(fails=command.fails)


@flow.subscriber(ordered=True, retry=quickly)
async def hear(event: Told, context: SubscriberContext) -> None:
    """In order; with a follow-up job."""
    times = await (await context.services.aget(Tries)).note(context.event_id)
    context.schedule(FollowUp(of=context.event_id))
    fail_at_first(event.fails, times)


@flow.command_handler
async def ask(ledger: Ledger, command: Ask, context: CommandContext) -> None:
    ledger.ask(fails=command.fails)


@flow.saga(retry=quickly)
class Respondent(Saga[LedgerId]):
    """An event of its own, and a follow-up job."""

    @starts_with
    async def asked(self, event: Asked, context: CommandContext) -> None:
        times = await note(context)
        context.schedule(FollowUp(of=context.source_id))
        self.emit(Answered())
        fail_at_first(event.fails, times)

    @applies
    def _answered(self, _: Answered) -> None:
        pass


async def note(context: CommandContext) -> int:
    """:meth:`Tries.note`."""
    return await (await context.services.aget(Tries)).note(context.source_id)


async def write_own_row(connection: "asyncpg.Connection[asyncpg.Record]", source_id: str) -> None:
    """What belongs to the handler's transaction; here too a process can be made to die."""
    await connection.execute("INSERT INTO own_row (source_id) VALUES ($1)", source_id)
    failpoint(WROTE)


def fail_at_first(fails: bool, times: int) -> None:
    """Nothing of what was done until here may be left of the first run."""
    if fails and times == 1:
        raise RuntimeError("the first attempt fails")
