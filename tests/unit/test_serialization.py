"""JSON of messages: what goes in comes out the same, or is refused."""

import json
import time
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Self
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventflow import DefinitionError, InvalidMessageError, PayloadTooLargeError, UndecodableMessageError
from eventflow.messages import Message
from eventflow.serialization import MAX_DEPTH, MAX_PAYLOAD_BYTES, Codec, deeper_than
from tests.unit.bench import OrderId

ORDER = OrderId("order-0192f0c1-7d3e-7cc1-8f4a-2b1d6f0e9a55")


class Percent(int):
    """A single-value type."""

    def __new__(cls, value: int) -> Self:
        if not 0 <= value <= 100:
            raise ValueError(f"{value} is not a percentage")
        return super().__new__(cls, value)


class Colour(Enum):
    """An enumeration."""

    RED = "red"


class Line(Message):
    """A part of a message."""

    order_id: OrderId
    share: Percent = Percent(100)


class Whole(Message):
    """One field of everything that messages are made of."""

    text: str = ""
    number: int = 0
    ratio: float = 0.0
    flag: bool = False
    at: datetime | None = None
    day: date | None = None
    pause: timedelta | None = None
    amount: Decimal | None = None
    uuid: UUID | None = None
    data: bytes = b""
    colour: Colour = Colour.RED
    tags: frozenset[str] = frozenset()
    lines: tuple[Line, ...] = ()
    prices: dict[str, int] = {}
    anything: Any = None


class Checked(Message):
    """A message that checks itself, with an error of any kind."""

    number: int = 0

    def __post_init__(self) -> None:
        if self.number < 0:
            raise KeyError("no such number")


CODEC = Codec(Whole)

INTEGERS = st.integers(-(2**63), 2**63 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
WHOLES = st.builds(
    Whole,
    text=st.text(),
    number=INTEGERS,
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    flag=st.booleans(),
    at=st.none() | st.datetimes(timezones=st.just(UTC)),
    day=st.none() | st.dates(),
    pause=st.none() | st.timedeltas(timedelta(-1_000), timedelta(1_000)),
    amount=st.none() | st.decimals(allow_nan=False, allow_infinity=False),
    uuid=st.none() | st.uuids(),
    data=st.binary(),
    tags=st.frozensets(st.text()),
    lines=st.lists(st.builds(Line, order_id=st.builds(OrderId.new), share=st.integers(0, 100).map(Percent))).map(tuple),
    prices=st.dictionaries(st.text(), INTEGERS),
    anything=JSON,
)


@given(WHOLES)
def test_what_is_encoded_decodes_equal(message: Whole) -> None:
    """Every message that is accepted comes back equal, with the types of its fields."""
    decoded = CODEC.decode(CODEC.encode(message))

    assert decoded == message
    assert all(type(line.order_id) is OrderId and type(line.share) is Percent for line in decoded.lines)


def test_identity_is_the_bare_string() -> None:
    """Identities and single values are bare scalars in JSON."""
    data = Codec(Line).encode(Line(order_id=ORDER, share=Percent(7)))

    assert json.loads(data) == {"order_id": ORDER, "share": 7}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"number": "7"}, "number"),
        ({"number": 7.5}, "number"),
        ({"text": 7}, "text"),
        ({"text": None}, "text"),
        ({"flag": 1}, "flag"),
        ({"ratio": float("nan")}, "ratio"),
        ({"ratio": float("inf")}, "ratio"),
        ({"anything": float("nan")}, "anything"),
        ({"anything": (1, 2)}, "anything"),
        ({"anything": {1, 2}}, "anything"),
        ({"anything": {1: 2}}, "anything"),
        ({"anything": b"x"}, "anything"),
        ({"anything": datetime(2030, 1, 1, tzinfo=UTC)}, "anything"),
        ({"lines": [Line(order_id=ORDER)]}, "lines"),
        ({"lines": (Line(order_id="order-1"),)}, r"lines\[0\]\.order_id"),  # pyright: ignore[reportArgumentType]
        ({"prices": {"a": 1.5}}, "prices"),
    ],
    ids=repr,
)
def test_value_that_would_not_come_back_is_refused(fields: dict[str, Any], named: str) -> None:
    """A field of the wrong type, and a value that JSON changes, are refused; the error names the field."""
    with pytest.raises(InvalidMessageError, match=named):
        CODEC.encode(Whole(**fields))


@pytest.mark.parametrize(
    "value",
    [object(), "\ud800", {(1, 2): 3}, 10**5_000, Whole, [float("inf")], {"a": ("b",)}],
    ids=["object", "surrogate", "tuple-key", "10**5000", "type", "infinity", "inner-tuple"],
)
def test_value_without_a_json_form_is_refused(value: Any) -> None:
    """What JSON cannot carry at all gets the same typed error."""
    with pytest.raises(InvalidMessageError, match="Whole cannot be stored"):
        CODEC.encode(Whole(anything=value))


def test_size_limit_is_exact() -> None:
    """A message of the largest size is accepted, one byte more is not."""
    overhead = len(CODEC.encode(Whole()))
    largest = "x" * (MAX_PAYLOAD_BYTES - overhead)

    assert len(CODEC.encode(Whole(text=largest))) == MAX_PAYLOAD_BYTES
    with pytest.raises(PayloadTooLargeError, match=f"{MAX_PAYLOAD_BYTES + 1} bytes"):
        CODEC.encode(Whole(text=largest + "x"))


def _nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_depth_limit_is_exact() -> None:
    """A message nested as deep as allowed is accepted, one level more is not."""
    assert CODEC.encode(Whole(anything=_nested(MAX_DEPTH - 1)))
    with pytest.raises(PayloadTooLargeError, match=f"deeper than {MAX_DEPTH}"):
        CODEC.encode(Whole(anything=_nested(MAX_DEPTH)))


@pytest.mark.parametrize("levels", [900, 5_000, 20_000])
def test_depth_beyond_the_interpreters_is_refused_alike(levels: int) -> None:
    """A value nested deeper than the interpreter's stack gets the same typed error."""
    with pytest.raises(PayloadTooLargeError, match=f"deeper than {MAX_DEPTH}"):
        CODEC.encode(Whole(anything=_nested(levels)))


def test_value_that_contains_itself_is_refused() -> None:
    """A list in itself is a typed error, not a crash."""
    value: list[Any] = []
    value.append(value)

    with pytest.raises(PayloadTooLargeError):
        CODEC.encode(Whole(anything=value))


@pytest.mark.parametrize("text", ["{" * 500, '"[' * 500, "\\" * 301 + '"' + "[" * 500, '\\"{[' * 500])
def test_braces_inside_strings_are_no_depth(text: str) -> None:
    """Brackets, quotes and backslashes in texts do not count as nesting."""
    message = Whole(text=text, anything={text: [text]})

    assert CODEC.decode(CODEC.encode(message)) == message


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return 0


@given(JSON, st.integers(0, 6), st.booleans())
def test_depth_is_counted_as_it_is(value: Any, limit: int, escape: bool) -> None:
    """The scan of the text finds the depth that the value has."""
    data = json.dumps(value, ensure_ascii=escape).encode()

    assert deeper_than(data, limit) == (_depth(value) > limit)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ('{"number":"7"}', r"\$\.number"),
        ('{"lines":[{"order_id":"order-7"}]}', r"is not an OrderId.*\$\.lines\[0\]\.order_id"),
        ('{"lines":[{"order_id":7}]}', r"expected `str`, got `int`.*\$\.lines\[0\]\.order_id"),
        ('{"lines":[{"order_id":null}]}', r"\$\.lines\[0\]\.order_id"),
        (f'{{"lines":[{{"order_id":"{ORDER}","share":101}}]}}', r"101 is not a percentage.*\$\.lines\[0\]\.share"),
        (f'{{"lines":[{{"order_id":"{ORDER}","share":true}}]}}', r"\$\.lines\[0\]\.share"),
        (f'{{"lines":[{{"order_id":"{ORDER}","share":1.0}}]}}', r"\$\.lines\[0\]\.share"),
        ('{"lines":[{}]}', "order_id"),
        ("", "truncated"),
        ("[]", "array"),
        ("nonsense", "malformed"),
        ('{"text":"\\ud800"}', "."),
        (b'{"text":"\xff"}', "utf-8"),
        (b'\xff\xfe{"text":""}', "."),
        ('{"anything":' + "[" * 20_000 + "]" * 20_000 + "}", "recursion"),
        ("[" * 20_000, "."),
        ('{"number":' + "9" * 131_072 + "}", r"\$\.number"),
        ('{"anything":' + "9" * 131_072 + "}", r"\$\.anything"),
        ('{"ratio":' + "9" * 131_072 + "}", r"\$\.ratio"),
        ('{"amount":"' + "9" * 20 + 'x"}', r"\$\.amount"),
    ],
    ids=lambda value: repr(value)[:20] + repr(value)[-20:],
)
def test_stored_text_that_does_not_fit_is_refused_with_its_path(data: bytes | str, reason: str) -> None:
    """Whatever stands in a row, reading it gives the message or one typed error with the path of the field."""
    with pytest.raises(UndecodableMessageError, match=f"(?i){reason}"):
        CODEC.decode(data)


def test_error_of_the_types_own_check_is_the_same_typed_error() -> None:
    """A type's own code may raise anything: reading and storing report it like every other misfit."""
    with pytest.raises(UndecodableMessageError, match="no such number"):
        Codec(Checked).decode('{"number":-1}')


def test_unknown_fields_are_skipped() -> None:
    """A field that a newer release added is left out by an older one."""
    assert CODEC.decode('{"text":"a","added":[1]}') == Whole(text="a")


def test_reading_hostile_text_takes_no_time() -> None:
    """Deep and long texts are refused in milliseconds."""
    started = time.perf_counter()

    for data in ("[" * 1_000_000, '{"number":' + "9" * 1_000_000 + "}"):
        with pytest.raises(UndecodableMessageError):
            CODEC.decode(data)

    assert time.perf_counter() - started < 1


def test_type_that_json_cannot_tell_apart_is_refused_when_built() -> None:
    """A union that JSON cannot tell apart is an error of the definition, named by its class."""

    class Torn(Message):
        when: datetime | timedelta | bytes

    with pytest.raises(DefinitionError, match="Torn"):
        Codec(Torn)
