"""The job that publishes a command: when it runs, under which name, and what becomes of it."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import anyio
import msgspec
import pytest

from eventflow import (
    AnyCommand,
    CommandContext,
    DistinctCommand,
    DomainError,
    EventFlow,
    InvalidHandlerError,
    InvalidScheduleError,
    JobState,
    ManualClock,
    PublishCommandJob,
    RetryPolicy,
    StandaloneCommand,
    command_version,
    job_version,
)
from eventflow.clock import to_microseconds
from eventflow.commands import CallNext
from eventflow.jobs import Outcome
from tests.unit.bench import Act, Bench, CancelOrder, OrderId, PlaceOrder, RebuildIndex
from tests.unit.test_definitions import PlaceV1, PlaceV2, Quiet
from tests.unit.test_runner import error_of

ORDER = OrderId("order-0192f0c1-7d3e-7cc1-8f4a-2b1d6f0e9a55")
LATER = timedelta(hours=1)


class Pay(DistinctCommand[OrderId]):
    """A command whose source id follows from its content."""

    invoice: str

    def source_id_components(self) -> Iterable[bytes]:
        yield self.invoice.encode()


@command_version("Settle", aliases=["Balance"])
class Settle(DistinctCommand[OrderId]):
    """One that had another name, and whose content was something else."""

    def source_id_components(self) -> Iterable[bytes]:
        yield b"settled"


@job_version("PlaceOrder")
class PlaceOrderJob(Quiet):
    """A job with the name of a command."""


@pytest.mark.parametrize("when", ["now", "delay", "at"])
async def test_scheduled_command_is_published_when_it_is_due(when: str) -> None:
    """Now, after a delay, or at an instant: not a microsecond before; the id that was returned finds the job."""
    clock, published = ManualClock(), list[PlaceOrder]()
    flow = EventFlow("orders")

    @flow.command_handler
    async def place(command: PlaceOrder, context: CommandContext) -> int:
        published.append(command)
        return command.total_cents

    command = PlaceOrder(aggregate_id=ORDER, total_cents=3)
    options: dict[str, Any] = {"now": {}, "delay": {"delay": LATER}, "at": {"at": clock.now() + LATER}}[when]
    async with flow.open("memory:", clock=clock) as app:
        job_id = await app.jobs.schedule(PublishCommandJob.create(command), **options)
        if when != "now":
            clock.advance(LATER - timedelta(microseconds=1))
            assert await app.run_due() == 0
            clock.advance(timedelta(microseconds=1))
        assert await app.run_due() == 1
        record = await app.jobs.get(job_id)

    assert place is not None
    assert published == [command]
    assert record is not None
    assert (record.name, record.state, record.aggregate_id) == (
        "PublishCommand:PlaceOrder",
        JobState.SUCCEEDED,
        ORDER,
    )


class Ask(StandaloneCommand[Any]):
    """May return anything."""


@pytest.mark.parametrize("result", [None, 0, False, "", [], {"error": "returned, not raised"}], ids=repr)
async def test_result_of_the_command_is_not_the_jobs(result: Any) -> None:
    """A handler that returns has succeeded, whatever it returns: a refusal is raised."""
    flow = EventFlow("index")

    async def answer(command: Ask, context: CommandContext) -> Any:
        return result

    flow.command_handler(answer)

    settlement = await Bench(flow).run(Ask())

    assert settlement.outcome is Outcome.SUCCEEDED


async def test_published_command_reaches_its_handler_as_it_was() -> None:
    """
    The job that publishes a command hands it to the bus unchanged: data, source id and aggregate id.

    Once: run again, it finds that the operation was done, which is a success.
    """
    seen: list[PlaceOrder] = []

    async def place(command: PlaceOrder, context: CommandContext) -> int:
        seen.append(command)
        context.schedule(CancelOrder(aggregate_id=command.aggregate_id), delay=timedelta(minutes=30))
        return 1

    flow = EventFlow("orders")
    flow.command_handler(place)
    flow.add_commands(CancelOrder)
    bench = Bench(flow)
    command = PlaceOrder(aggregate_id=OrderId.new(), total_cents=5)
    claim = bench.claim(command)

    settlements = [await bench.runner.run(msgspec.structs.replace(claim, attempt=n), started_us=0) for n in (1, 2)]

    assert seen == [command]
    assert [s.outcome for s in settlements] == [Outcome.SUCCEEDED] * 2
    assert [s.is_written for s in settlements] == [True, False]
    assert [job.name for job in await bench.store.find()] == ["PublishCommand:CancelOrder"]


async def test_refused_command_in_a_job_goes_to_the_dead_letters() -> None:
    """A handler's refusal ends the job that published its command as a dead letter; what it scheduled is dropped."""

    async def refuse(command: CancelOrder, context: CommandContext) -> None:
        context.schedule(Act())
        raise DomainError("already shipped")

    flow = EventFlow("orders")
    flow.command_handler(refuse)

    settlement = await Bench(flow).run(CancelOrder(aggregate_id=OrderId.new()))

    assert (settlement.outcome, settlement.reason, settlement.follow_ups) == (Outcome.DEAD, "error", ())
    assert error_of(settlement)["message"] == "already shipped"


async def test_options_of_a_published_command_are_its_handlers() -> None:
    """Retries, timeout and retention of a command's job are those of its handler's registration."""
    flow = EventFlow("orders")

    @flow.command_handler(retry=RetryPolicy(max_attempts=1), queue="slow", priority=2)
    async def fail(command: CancelOrder, context: CommandContext) -> None:
        raise ValueError("broken")

    bench = Bench(flow)
    command = CancelOrder(aggregate_id=OrderId.new())

    settlement = await bench.run(command)

    assert fail is not None
    assert settlement.outcome is Outcome.DEAD
    assert (bench.encoder.encode(command).queue, bench.encoder.encode(command).priority) == ("slow", 2)


async def test_cancellation_inside_a_published_command_passes() -> None:
    """Cancelling the job cancels the command's handler, and nothing is settled."""
    cancelled: list[bool] = []

    async def hang(command: CancelOrder, context: CommandContext) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append(True)

    flow = EventFlow("orders")
    flow.command_handler(hang)
    bench = Bench(flow)

    async with anyio.create_task_group() as group:
        group.start_soon(bench.run, CancelOrder(aggregate_id=OrderId.new()))
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()

    assert cancelled == [True]


async def test_versions_of_a_command_are_jobs_of_their_own() -> None:
    """Two versions with a handler each: every stored command goes to the handler of its version."""
    seen: list[AnyCommand[Any]] = []
    flow = EventFlow("orders")

    async def place_1(command: PlaceV1, context: CommandContext) -> int:
        seen.append(command)
        return 1

    async def place_2(command: PlaceV2, context: CommandContext) -> int:
        seen.append(command)
        return 2

    flow.command_handler(place_1)
    flow.command_handler(place_2)
    bench = Bench(flow)
    commands = [PlaceV2(aggregate_id=ORDER, cents=700), PlaceV1(aggregate_id=ORDER, euros=7)]

    claims = [bench.claim(command) for command in commands]
    for claim in claims:
        await bench.runner.run(claim, started_us=bench.now_us)

    assert [(claim.name, claim.version) for claim in claims] == [
        ("PublishCommand:Place", 2),
        ("PublishCommand:Place", 1),
    ]
    assert seen == commands


def test_job_and_command_may_have_one_name() -> None:
    """What is stored for a command is told from a job of that name by its prefix."""
    flow = EventFlow("orders")
    flow.job(PlaceOrderJob)
    flow.add_commands(PlaceOrder)
    definitions = Bench(flow).model.definitions
    command = PlaceOrder(aggregate_id=ORDER, total_cents=1)

    for job in (PlaceOrderJob(), PublishCommandJob.create(command)):
        assert definitions.decode(*definitions.encode(job)) == job


async def test_stored_source_id_of_a_distinct_command_stands() -> None:
    """Under a former name, and made of other content: it is the operation that was scheduled, not a new one."""
    seen: list[str] = []
    flow = EventFlow("invoices")

    async def settle(command: Settle, context: CommandContext) -> None:
        seen.extend([command.source_id, context.source_id])

    flow.command_handler(settle)
    stored = f'{{"aggregate_id":"{ORDER}","source_id":"command-of-yesterday"}}'

    settlement = await Bench(flow).run(Settle(aggregate_id=ORDER), name="PublishCommand:Balance", payload=stored)

    assert settlement.outcome is Outcome.SUCCEEDED
    assert seen == ["command-of-yesterday"] * 2


def test_same_request_is_stored_with_the_same_source_id() -> None:
    """Two jobs for equal distinct commands are two jobs, and one operation."""
    flow = EventFlow("invoices")
    flow.add_commands(Pay)
    encoder = Bench(flow).encoder

    first, second = (encoder.encode(Pay(aggregate_id=ORDER, invoice="2030-1")) for _ in range(2))

    assert first.id != second.id
    assert first.payload == second.payload


async def test_middleware_goes_around_the_command_of_a_job() -> None:
    """As around any: it may answer itself, and the job has succeeded."""
    around: list[str] = []
    flow = EventFlow("index")

    async def rebuild(command: RebuildIndex, context: CommandContext) -> str:
        raise NotImplementedError

    async def answer(command: AnyCommand[Any], context: CommandContext, call_next: CallNext) -> Any:
        around.append(command.source_id)
        return "done already"

    flow.command_handler(rebuild)
    flow.middleware(answer)
    command = RebuildIndex()

    settlement = await Bench(flow).run(command)

    assert settlement.outcome is Outcome.SUCCEEDED
    assert around == [command.source_id]


async def test_follow_ups_of_a_published_command_carry_its_story_on() -> None:
    """What the handler schedules is caused by the job, in the story that the job belongs to."""
    stories: list[str] = []
    flow = EventFlow("index")

    async def rebuild(command: RebuildIndex, context: CommandContext) -> str:
        stories.append(context.correlation_id)
        context.schedule(RebuildIndex(shards=command.shards - 1), delay=LATER)
        return ""

    flow.command_handler(rebuild)
    bench = Bench(flow)
    claim = bench.claim(RebuildIndex(), headers='{"correlation_id":"the story","causation_id":"what came before"}')

    await bench.runner.run(claim, started_us=to_microseconds(bench.clock.now()))

    [follow_up] = await bench.store.find()
    assert stories == ["the story"]
    assert follow_up.headers == {"correlation_id": "the story", "causation_id": claim.id}


@pytest.mark.parametrize("wrong", ["text", None, Quiet(), RebuildIndex], ids=repr)
def test_what_is_no_command_cannot_be_published(wrong: Any) -> None:
    """A typed error where the job is made, as for any wrong call to schedule."""
    with pytest.raises(InvalidScheduleError, match="only commands can be published"):
        PublishCommandJob.create(wrong)


def test_job_that_publishes_has_no_subclasses() -> None:
    """Only its command is stored, so what a subclass adds would be lost: it is refused where it is defined."""
    with pytest.raises(InvalidHandlerError, match="Noisy"):
        type("Noisy", (PublishCommandJob,), {})
