"""Identities and value objects on their way through commands, events and snapshots."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any, Self

import msgspec
import pytest

from eventflow import (
    Aggregate,
    Command,
    CommandContext,
    Event,
    EventFlow,
    InMemoryJobScheduler,
    InvalidIdentityError,
    InvalidMessageError,
    JobState,
    ManualClock,
    StreamId,
    UndecodableMessageError,
    applies,
)
from eventflow.jobs import Outcome
from eventflow.messages import Message
from eventflow.serialization import Codec
from tests.unit.bench import Bench, OrderId, ThingyId
from tests.unit.test_runner import error_of
from tests.unit.test_serialization import Percent

ORDER = OrderId("order-0192f0c1-7d3e-7cc1-8f4a-2b1d6f0e9a55")
WHEN = datetime(2030, 1, 1, tzinfo=UTC)


class Email(str):
    """A single-value type over text."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if "@" not in text:
            raise ValueError(f"{text!r} is no e-mail address")
        return super().__new__(cls, text)


class Ratio(float):
    """A single-value type over a number with a point."""

    def __new__(cls, value: float) -> Self:
        if not 0 <= value <= 1:
            raise ValueError(f"{value} is not between 0 and 1")
        return super().__new__(cls, value)


class Size(StrEnum):
    """Text of which there are two."""

    SMALL = "small"
    LARGE = "large"


class Level(IntEnum):
    """Numbers of which there are two."""

    LOW = 1
    HIGH = 2


class Colour(Enum):
    """Neither text nor number by itself."""

    RED = "red"


class Money(Message):
    """A value of several parts."""

    cents: int
    currency: str

    def __post_init__(self) -> None:
        if len(self.currency) != 3:
            raise ValueError(f"{self.currency!r} is no currency")


class Describe(Command[OrderId]):
    """Everything that values are used for."""

    email: Email
    share: Percent = Percent(5)
    ratio: Ratio = Ratio(0.5)
    size: Size = Size.SMALL
    level: Level = Level.HIGH
    colour: Colour = Colour.RED
    price: Money = Money(cents=1, currency="EUR")
    others: dict[ThingyId, list[Email]] = {}
    maybe: Percent | None = None


class Described(Event):
    """What came of it."""

    email: Email
    shares: dict[OrderId, Percent]


class Description(Aggregate[OrderId], snapshot_every=1):
    """Has values in its state."""

    email: Email = Email("nobody@")
    shares: dict[OrderId, Percent] = {}

    @applies
    def _described(self, event: Described) -> None:
        self.email, self.shares = event.email, {**self.shares, **event.shares}


seen: list[tuple[Describe, Description]] = []


async def describe(description: Description, command: Describe, context: CommandContext) -> None:
    """Note what comes in, and go on."""
    seen.append((command, Description(email=description.email, shares=description.shares)))
    description.emit(Described(email=command.email, shares={command.aggregate_id: command.share}))


@pytest.fixture
def flow() -> EventFlow:
    """An application of this handler."""
    seen.clear()
    made = EventFlow("values")
    made.command_handler(describe)
    return made


WHOLE = Describe(aggregate_id=ORDER, email=Email("a@b"), others={ThingyId.new(): [Email("c@d")]}, maybe=Percent(0))


def test_values_are_bare_in_json(flow: EventFlow) -> None:
    """Identities, single values and enumerations are plain text and numbers, also as keys."""
    data = json.loads(Bench(flow).encoder.encode(WHOLE).payload)

    [thingy] = WHOLE.others
    assert data == {
        "source_id": WHOLE.source_id,
        "aggregate_id": ORDER,
        "email": "a@b",
        "share": 5,
        "ratio": 0.5,
        "size": "small",
        "level": 2,
        "colour": "red",
        "price": {"cents": 1, "currency": "EUR"},
        "others": {thingy: ["c@d"]},
        "maybe": 0,
    }


async def test_values_come_back_with_their_types(flow: EventFlow) -> None:
    """From a job's payload, from events and from a snapshot."""
    async with flow.open("memory:", clock=ManualClock()) as app:
        for command in (WHOLE, Describe(aggregate_id=ORDER, email=Email("e@f"), share=Percent(7))):
            await app.commands.schedule(command)
            await app.run_due()
        loaded = await app.aggregates.load(Description, ORDER)

    (first, before), (_, between) = seen
    assert first == WHOLE
    assert (before, between) == (Description(), Description(email=Email("a@b"), shares={ORDER: Percent(5)}))
    assert loaded.shares == {ORDER: Percent(7)}
    [thingy] = first.others
    [(order_id, share)] = loaded.shares.items()
    values = [first.email, first.ratio, thingy, first.others[thingy][0], first.maybe, order_id, share]
    assert [type(value) for value in values] == [Email, Ratio, ThingyId, Email, Percent, OrderId, Percent]
    assert type(loaded.email) is Email


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("email", "nobody", r"'nobody' is no e-mail address - at `$.email`"),
        ("email", 7, r"expected `str`, got `int` - at `$.email`"),
        ("share", 101, "101 is not a percentage - at `$.share`"),
        ("ratio", 1.5, "1.5 is not between 0 and 1 - at `$.ratio`"),
        ("size", "huge", "Invalid enum value 'huge' - at `$.size`"),
        ("level", 3, "Invalid enum value 3 - at `$.level`"),
        ("colour", None, "Expected `str`, got `null` - at `$.colour`"),
        ("price", {"cents": 1, "currency": "euro"}, "'euro' is no currency - at `$.price`"),
        ("price", {"cents": "1", "currency": "EUR"}, "Expected `int`, got `str` - at `$.price.cents`"),
        ("others", {"thingy-1": []}, "'thingy-1' is not a ThingyId: "),
        (
            "others",
            {"thingy-4b1e7b48-18f1-4215-91d9-903cffdab3d8": ["x"]},
            "'x' is no e-mail address - at `$.others[...][0]`",
        ),
        ("maybe", -1, "-1 is not a percentage - at `$.maybe`"),
        ("aggregate_id", "order-1", "'order-1' is not an OrderId: "),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value)[:20],
)
async def test_bad_value_in_a_stored_command_is_a_dead_letter_with_its_path(
    flow: EventFlow, field: str, value: Any, reason: str
) -> None:
    """Any client can write one: that job is dead at once, its handler does not run, and the reason says where."""
    bench = Bench(flow)
    data = json.loads(bench.encoder.encode(WHOLE).payload)

    settlement = await bench.run(WHOLE, payload=json.dumps({**data, field: value}))

    assert (settlement.outcome, settlement.reason, seen) == (Outcome.DEAD, "undecodable", [])
    message = error_of(settlement)["message"]
    assert message.startswith("stored 'Describe' v1 cannot be read: ")
    assert reason in message
    assert f"$.{field}" in message


class Amount(Decimal):
    """A single-value type over a decimal."""

    def __new__(cls, value: str | Decimal) -> Self:
        made = super().__new__(cls, value)
        if made < 0:
            raise ValueError(f"{made} is negative")
        return made


class Priced(Message):
    """Has one, and a ratio."""

    amount: Amount
    ratio: Ratio = Ratio(1)


def test_decimals_are_values_too() -> None:
    """As text, as every decimal in JSON; a whole number is a ratio too, as it is a float."""
    codec = Codec(Priced)

    assert codec.encode(Priced(amount=Amount("1.50"))) == b'{"amount":"1.50","ratio":1.0}'
    assert type(codec.decode('{"amount":"1.50","ratio":1}').amount) is Amount
    assert type(codec.decode('{"amount":"1.50","ratio":1}').ratio) is Ratio
    with pytest.raises(UndecodableMessageError, match=r"-1 is negative - at `\$\.amount`"):
        codec.decode('{"amount":"-1"}')
    with pytest.raises(UndecodableMessageError, match=r"\$\.amount"):
        codec.decode('{"amount":"much"}')


async def test_others_go_on_beside_a_bad_value(flow: EventFlow) -> None:
    """One dead letter, and the effect of the commands before and after it."""
    bench = Bench(flow)
    jobs = [bench.encoder.encode(Describe(aggregate_id=ORDER, email=Email("a@b"))) for _ in range(3)]
    jobs[1] = msgspec.structs.replace(jobs[1], payload=jobs[1].payload.replace(b"a@b", b"a-b"))
    await bench.store.insert(jobs)

    await InMemoryJobScheduler(bench.store, bench.commits, bench.encoder, bench.runner, bench.interest).run_due()

    records = {record.id: record.state for record in await bench.store.find()}
    assert [records[job.id] for job in jobs] == [JobState.SUCCEEDED, JobState.DEAD, JobState.SUCCEEDED]
    assert len(await bench.events.load(StreamId("Description", ORDER))) == 2


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"email": "nobody"}, "email"),
        ({"email": None}, "email"),
        ({"share": 101}, "share"),
        ({"share": 5.5}, "share"),
        ({"ratio": 2.0}, "ratio"),
        ({"size": "huge"}, "size"),
        ({"others": {"thingy-1": []}}, "others"),
        ({"aggregate_id": ThingyId.new()}, "aggregate_id"),
    ],
    ids=str,
)
async def test_bad_value_is_refused_where_the_command_is_scheduled(
    flow: EventFlow, changes: dict[str, Any], named: str
) -> None:
    """Structs do not check their fields when they are made; scheduling does."""
    command = msgspec.structs.replace(WHOLE, **changes)

    async with flow.open("memory:", clock=ManualClock()) as app:
        with pytest.raises(InvalidMessageError, match=rf"Describe cannot be stored: .*\$\.{named}"):
            await app.commands.schedule(command)
        assert await app.jobs.find() == []


def test_bad_value_is_refused_where_it_is_made() -> None:
    """By its own type, with the error of that."""
    with pytest.raises(ValueError, match="101 is not a percentage"):
        Percent(101)
    with pytest.raises(InvalidIdentityError, match="'order-1' is not an OrderId"):
        OrderId("order-1")


def test_values_are_equal_and_ordered_as_what_they_are() -> None:
    """Single values like their scalars, values of several parts by their parts."""
    assert sorted([Percent(7), Percent(5)]) == [5, 7]
    assert Email("a@b") == "a@b"
    assert hash(Email("a@b")) == hash("a@b")
    assert Money(cents=1, currency="EUR") == Money(cents=1, currency="EUR") != Money(cents=1, currency="USD")
    assert len({Money(cents=1, currency="EUR"), Money(cents=1, currency="EUR")}) == 1
