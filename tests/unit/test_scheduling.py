"""Options of scheduling: what is accepted, what is refused before anything is written."""

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from eventflow import (
    EventFlow,
    EventFlowError,
    InvalidMessageError,
    InvalidScheduleError,
    JobId,
    OnError,
    PayloadTooLargeError,
    PublishCommandJob,
    RetryPolicy,
    UnknownCommandDefinitionError,
    UnknownJobDefinitionError,
)
from eventflow.clock import to_microseconds
from eventflow.commands import Causation
from eventflow.scheduling import Due, due_of
from tests.unit.bench import Act, Bench, OrderId, PlaceOrder, RebuildIndex
from tests.unit.test_definitions import Named, Note, Quiet

NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)


def order_flow() -> EventFlow:
    """A flow with commands and options."""
    flow = EventFlow("orders")
    flow.add_commands(PlaceOrder)
    flow.job(queue="mail", priority=3)(Quiet)
    return flow


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"at": NOON.replace(tzinfo=None)}, "naive"),
        ({"at": NOON, "delay": timedelta(1)}, "not both"),
        ({"at": datetime(1999, 12, 31, tzinfo=UTC)}, "2000 to 2199"),
        ({"at": datetime(2200, 1, 1, tzinfo=UTC)}, "2000 to 2199"),
        ({"at": datetime.min.replace(tzinfo=UTC)}, "2000 to 2199"),
        ({"at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-14)))}, "2000 to 2199"),
        ({"at": 1_900_000_000}, "takes a datetime, not int"),
        ({"at": date(2030, 1, 1)}, "takes a datetime, not date"),
        ({"at": "2030-01-01T00:00:00Z"}, "takes a datetime, not str"),
        ({"delay": timedelta(microseconds=-1)}, "negative"),
        ({"delay": timedelta(days=36_501)}, "hundred years"),
        ({"delay": timedelta.max}, "hundred years"),
        ({"delay": 5}, "takes a timedelta, not int"),
        ({"delay": 0}, "takes a timedelta, not int"),
        ({"queue": ""}, "queue"),
        ({"queue": "x" * 101}, "queue"),
        ({"queue": "a\0b"}, "queue"),
        ({"queue": "\ud800"}, "Unicode"),
        ({"queue": 7}, "queue"),
        ({"priority": -1}, "priority"),
        ({"priority": 4}, "priority"),
        ({"priority": 1.0}, "priority"),
        ({"priority": "1"}, "priority"),
        ({"key": ""}, "key"),
        ({"key": "x" * 201}, "key"),
        ({"tags": "urgent"}, "list of texts"),
        ({"tags": ["x"] * 51}, "at most 50"),
        ({"tags": ["fine", ""]}, "tags"),
        ({"tags": ["x" * 101]}, "tags"),
        ({"tags": [7]}, "tags"),
        ({"timeout": timedelta(0)}, "timeout"),
        ({"timeout": timedelta(-1)}, "timeout"),
        ({"timeout": timedelta(days=366)}, "timeout"),
        ({"timeout": 30}, "timeout"),
        ({"retry": RetryPolicy(on={OSError: OnError.IGNORE})}, "`on`"),
        ({"retry": 3}, "retry"),
        ({"dely": timedelta(days=1)}, "dely"),
    ],
    ids=repr,
)
async def test_option_that_makes_no_sense_is_refused_and_nothing_written(options: dict[str, Any], named: str) -> None:
    """Every wrong option is a typed error that names it, raised before anything is stored."""
    bench = Bench()

    with pytest.raises(InvalidScheduleError, match=named):
        await bench.scheduler.schedule(Act(), **options)
    with pytest.raises(InvalidScheduleError, match=named):
        await bench.scheduler.schedule_many([Act(), Act()], **options)

    assert await bench.store.find() == []


@pytest.mark.parametrize(
    ("job", "error"),
    [
        (Named(), UnknownJobDefinitionError),
        (PublishCommandJob.create(RebuildIndex()), UnknownCommandDefinitionError),
        (Act(number="7"), InvalidMessageError),  # pyright: ignore[reportArgumentType] - not checked when made
        (PublishCommandJob.create(PlaceOrder(aggregate_id="order-7", total_cents=1)), InvalidMessageError),  # pyright: ignore[reportArgumentType]
        (Note(), InvalidScheduleError),
        ("SendMail", InvalidScheduleError),
    ],
    ids=["job", "command", "field", "identity", "message", "text"],
)
async def test_message_that_cannot_be_stored_is_refused_and_nothing_written(
    job: Any, error: type[EventFlowError]
) -> None:
    """An unknown or ill-typed message is a typed error; with it in a batch nothing of the batch is stored."""
    bench = Bench(order_flow())

    with pytest.raises(error):
        await bench.scheduler.schedule(job)
    with pytest.raises(error):
        await bench.scheduler.schedule_many([Act(), job, Act()])

    assert await bench.store.find() == []


async def test_too_large_message_is_refused_and_nothing_written() -> None:
    """A message over the size limit is a typed error."""
    flow = EventFlow("large")

    class Large(Quiet):
        text: str

    flow.job(Large)
    bench = Bench(flow)

    with pytest.raises(PayloadTooLargeError):
        await bench.scheduler.schedule(Large(text="x" * 2**20))

    assert await bench.store.find() == []


def test_instants_are_microseconds_whatever_their_zone() -> None:
    """An aware instant means the same in every zone, to the microsecond."""
    instant = NOON + timedelta(microseconds=1)
    elsewhere = instant.astimezone(timezone(timedelta(hours=5, minutes=45)))

    assert due_of(elsewhere, None) == due_of(instant, None) == Due(at_us=to_microseconds(instant))
    assert due_of(None, timedelta(microseconds=1)) == Due(delay_us=1)
    assert due_of(None, timedelta(0)) == Due(delay_us=0)
    assert due_of(None, None) == Due()


async def test_past_instant_means_now() -> None:
    """A job whose instant is past keeps it as its due time and is ready at once."""
    bench = Bench()

    job_id = await bench.scheduler.schedule(Act(), at=datetime(2020, 1, 1, tzinfo=UTC))

    record = await bench.scheduler.get(job_id)
    assert record is not None
    assert (record.due_at.year, record.ready_at) == (2020, bench.clock.now())


async def test_registration_gives_the_defaults_and_the_call_wins() -> None:
    """Queue and priority are the registration's, unless the call says otherwise."""
    bench = Bench(order_flow())

    plain = bench.encoder.encode(Quiet())
    chosen = bench.encoder.encode(Quiet(), queue="other", priority=0)
    default = bench.encoder.encode(Act())

    assert (plain.queue, plain.priority) == ("mail", 3)
    assert (chosen.queue, chosen.priority) == ("other", 0)
    assert (default.queue, default.priority, default.due) == ("default", 1, Due())


def test_options_are_stored_with_the_job() -> None:
    """Key, tags, timeout and the numbers of the retry policy travel with the job."""
    retry = RetryPolicy(max_attempts=2, base=timedelta(seconds=1), cap=timedelta(seconds=9))

    new = Bench().encoder.encode(Act(), key="k", tags=["a", "b"], timeout=timedelta(seconds=1.5), retry=retry)

    assert (new.key, new.tags, new.timeout_us) == ("k", ("a", "b"), 1_500_000)
    assert new.retry is not None
    assert msgspec.json.decode(new.retry) == {"max_attempts": 2, "base_us": 1_000_000, "cap_us": 9_000_000}


def test_command_is_stored_as_the_job_that_publishes_it() -> None:
    """A command's job carries the command's own name, version, JSON and aggregate."""
    bench = Bench(order_flow())
    command = PlaceOrder(aggregate_id=OrderId.new(), total_cents=3)

    by_hand = bench.encoder.encode(PublishCommandJob.create(command))
    directly = bench.encoder.encode(command)

    assert (by_hand.name, by_hand.version) == ("PublishCommand:PlaceOrder", 1)
    assert msgspec.json.decode(by_hand.payload) == {
        "aggregate_id": command.aggregate_id,
        "source_id": command.source_id,
        "total_cents": 3,
    }
    assert by_hand.aggregate_id == command.aggregate_id
    assert (directly.name, directly.payload) == (by_hand.name, by_hand.payload)


def test_first_job_is_its_own_cause() -> None:
    """A job that nothing caused begins a story of its own; others carry on what they were given."""
    encoder = Bench().encoder

    first = encoder.encode(Act())
    second = encoder.encode(Act(), Causation("story", "cause"))

    assert msgspec.json.decode(first.headers) == {"correlation_id": first.id, "causation_id": first.id}
    assert msgspec.json.decode(second.headers) == {"correlation_id": "story", "causation_id": "cause"}


async def test_ids_come_in_the_order_of_the_jobs() -> None:
    """schedule_many answers with one id per job, in their order; nothing to schedule is nothing."""
    bench = Bench()

    ids = await bench.scheduler.schedule_many([Act(number=n) for n in range(20)])

    records = [await bench.scheduler.get(job_id) for job_id in ids]
    assert [record.payload["number"] for record in records if record] == list(range(20))
    assert await bench.scheduler.schedule_many([]) == []


async def test_reschedule_needs_a_time() -> None:
    """A job is rescheduled to something; the options of time are checked as when scheduling."""
    bench = Bench()
    job_id = await bench.scheduler.schedule(Act())

    with pytest.raises(InvalidScheduleError, match="at= or delay="):
        await bench.scheduler.reschedule(job_id)
    with pytest.raises(InvalidScheduleError, match="negative"):
        await bench.scheduler.reschedule(job_id, delay=timedelta(-1))


async def test_memory_has_no_transactions() -> None:
    """A scheduler without a database refuses options that promise one."""
    bench = Bench()

    with pytest.raises(InvalidScheduleError, match="PostgresJobScheduler"):
        await bench.scheduler.schedule(Act(), notify="in_transaction")
    with pytest.raises(InvalidScheduleError, match="PostgresJobScheduler"):
        await bench.scheduler.schedule(Act(), connection=object())  # pyright: ignore[reportArgumentType]

    assert await bench.store.find() == []


async def test_look_up_of_what_is_no_job_id_is_refused() -> None:
    """A text that is no job id is an error; an id that never was is nothing."""
    bench = Bench()

    assert await bench.scheduler.get(JobId.new()) is None
    with pytest.raises(ValueError, match="not a JobId"):
        await bench.scheduler.get("job-7")  # pyright: ignore[reportArgumentType]
