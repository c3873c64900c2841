"""What is scheduled while things fail: jobs and commands that tell what they do."""

from datetime import timedelta
from typing import Protocol

from eventflow import (
    Aggregate,
    Command,
    CommandContext,
    Event,
    EventFlow,
    Identity,
    Job,
    JobContext,
    RetryPolicy,
    ServiceScope,
    SubscriberContext,
    applies,
)
from eventflow.application.flow import Lifespan

RETRY = RetryPolicy(max_attempts=4, base=timedelta(milliseconds=50), cap=timedelta(milliseconds=400))


class FlakyError(Exception):
    """What a handler fails with on purpose."""


class Effects(Protocol):
    """Where handlers tell what they do, and what they do it with."""

    async def began(self, number: int, context: JobContext | CommandContext) -> None:
        """A handler starts."""
        ...

    async def ended(self, number: int, context: JobContext | CommandContext) -> None:
        """A handler comes to its end; whether its changes are written is another question."""
        ...

    async def saw(self, account_id: str, stream_version: int) -> None:
        """A subscriber that takes events in order got this one."""
        ...

    async def nap(self, seconds: float) -> None:
        """Wait, and let others go on."""
        ...

    async def block(self, seconds: float) -> None:
        """Keep the event loop busy."""
        ...

    async def die(self) -> None:
        """End the process as SIGKILL does."""
        ...


class Work(Job):
    """
    Does something outside.

    Attributes:
        number: Tells it from all others.
        nap: Seconds that it waits.
        block: Seconds for which nothing else goes on in its event loop.
        failures: Attempts that fail.
        children: Numbers of jobs that follow from it.
        is_deadly: It kills its process.
    """

    number: int
    nap: float = 0.0
    block: float = 0.0
    failures: int = 0
    children: tuple[int, ...] = ()
    is_deadly: bool = False

    async def execute(self, context: JobContext) -> None:
        effects = await _effects(context.services)
        await effects.began(self.number, context)
        if self.is_deadly:
            await effects.die()
        await _do(effects, self)
        if context.attempt <= self.failures:
            raise FlakyError(self.number)
        for child in self.children:
            context.schedule(Work(number=child))
        await effects.ended(self.number, context)


class News(Job):
    """Known to new versions of the application only."""

    number: int

    async def execute(self, context: JobContext) -> None:
        effects = await _effects(context.services)
        await effects.began(self.number, context)
        await effects.ended(self.number, context)


class AccountId(Identity):
    """Of an account."""


class Deposited(Event):
    """Money came in."""

    number: int


class Account(Aggregate[AccountId]):
    """Counts."""

    deposits: int = 0

    @applies
    def _deposited(self, event: Deposited) -> None:
        self.deposits += 1


class Deposit(Command[AccountId]):
    """Pay in; the fields are those of :class:`Work`."""

    number: int
    nap: float = 0.0
    block: float = 0.0


async def deposit(account: Account, command: Deposit, context: CommandContext) -> None:
    """Handles the command."""
    effects = await _effects(context.services)
    await effects.began(command.number, context)
    await _do(effects, command)
    account.emit(Deposited(number=command.number))
    await effects.ended(command.number, context)


async def statement(event: Deposited, context: SubscriberContext) -> None:
    """Takes the events of an account in order."""
    effects = await _effects(context.services)
    await effects.saw(context.aggregate_id, context.stream_version)


def flow_of(lifespan: Lifespan, *, is_new: bool = True) -> EventFlow:
    """
    The application.

    Args:
        lifespan: Registers :class:`Effects`.
        is_new: It knows :class:`News`.
    """
    flow = EventFlow("reliability", lifespan=lifespan)
    flow.job(retry=RETRY)(Work)
    if is_new:
        flow.job(retry=RETRY)(News)
    flow.command_handler(retry=RETRY)(deposit)
    flow.subscriber(ordered=True, retry=RETRY)(statement)
    return flow


async def _effects(services: ServiceScope) -> Effects:
    effects: Effects = await services.aget(Effects)
    return effects


async def _do(effects: Effects, doing: Work | Deposit) -> None:
    if doing.block:
        await effects.block(doing.block)
    if doing.nap:
        await effects.nap(doing.nap)
