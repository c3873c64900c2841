"""Aggregates: state that comes from events, and nothing else."""

from collections import deque
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import msgspec
import pytest

from eventflow import (
    Aggregate,
    DefinitionError,
    Event,
    EventFlow,
    Identity,
    InvalidHandlerError,
    InvalidIdentityError,
    InvalidMessageError,
    MissingApplierError,
    aggregate_version,
    applies,
)
from eventflow.aggregates import appliers_of, emitted, id_type, stream_of
from tests.unit.bench import OrderId, ThingyId

if TYPE_CHECKING:
    from fractions import Fraction

ORDER = OrderId("order-0192f0c1-7d3e-7cc1-8f4a-2b1d6f0e9a55")


class OrderPlaced(Event):
    """Begins an order."""

    total_cents: int
    lines: list[str] = []


class OrderPaid(Event):
    """Goes on."""

    cents: int


class OrderClosed(Event):
    """Ends it."""


class OrderLost(Event):
    """Nobody applies it."""


class Order(Aggregate[OrderId]):
    """What most tests use."""

    total_cents: int = 0
    paid_cents: int = 0
    is_closed: bool = False
    notes: list[str] = []

    @applies
    def _placed(self, event: OrderPlaced) -> None:
        self.total_cents = event.total_cents

    @applies
    def _went_on(self, event: OrderPaid | OrderClosed) -> None:
        if isinstance(event, OrderPaid):
            self.paid_cents += event.cents
        else:
            self.is_closed = True
        self.notes.append(type(event).__name__)


def checked(*aggregates: type[Aggregate[Any]]) -> None:
    """Put them together as ``flow.open()`` does."""
    flow = EventFlow("aggregates")
    flow.add_aggregates(*aggregates)
    flow.check()


def test_state_comes_from_emitted_events() -> None:
    """Emitting applies at once, in order; nothing counts as stored yet."""
    order = Order.new(ORDER)

    order.emit(OrderPlaced(total_cents=700))
    order.emit(OrderPaid(cents=200))
    order.emit(OrderPaid(cents=500))

    assert (order.total_cents, order.paid_cents, order.notes) == (700, 700, ["OrderPaid", "OrderPaid"])
    assert order.uncommitted_events == (OrderPlaced(total_cents=700), OrderPaid(cents=200), OrderPaid(cents=500))
    assert (order.id, order.stream_version, order.is_new) == (ORDER, 0, True)


def test_emitted_events_are_stored_as_they_were_emitted() -> None:
    """An event is encoded when it is emitted: what is done to a list in it later does not get into the stream."""
    order, lines = Order.new(ORDER), ["a"]

    order.emit(OrderPlaced(total_cents=1, lines=lines))
    lines.append("b")

    [event] = emitted(order)
    assert (event.name, event.version, event.data) == ("OrderPlaced", 1, b'{"total_cents":1,"lines":["a"]}')


@pytest.mark.parametrize(
    ("event", "named"),
    [
        (OrderPlaced(total_cents="7"), "total_cents"),  # pyright: ignore[reportArgumentType] - not checked when made
        (OrderPlaced(total_cents=1, lines=["a", 2]), r"lines\[1\]"),  # pyright: ignore[reportArgumentType]
        (OrderPaid(cents=None), "cents"),  # pyright: ignore[reportArgumentType]
    ],
    ids=["text", "inside", "none"],
)
def test_event_that_does_not_survive_json_leaves_the_state_as_it_was(event: Event, named: str) -> None:
    """It is refused where it is emitted, by the name of the field, before anything is applied."""
    order = Order.new(ORDER)

    with pytest.raises(InvalidMessageError, match=f"{type(event).__name__} cannot be stored.*{named}"):
        order.emit(event)

    assert order == Order()
    assert order.uncommitted_events == ()


def test_event_without_applier_is_refused_with_what_to_write() -> None:
    """The error names the aggregate, the event and the method that is missing; nothing was emitted."""
    order = Order.new(ORDER)

    with pytest.raises(MissingApplierError, match=r"Order has no .*@applies def .*event: OrderLost\) -> None"):
        order.emit(OrderLost())

    assert order.uncommitted_events == ()


def test_applier_that_emits_is_refused() -> None:
    """What it emitted would happen again whenever the aggregate is loaded."""

    class Chatty(Aggregate[OrderId]):
        @applies
        def _placed(self, event: OrderPlaced) -> None:
            self.emit(OrderClosed())

        @applies
        def _closed(self, event: OrderClosed) -> None: ...

    chatty = Chatty.new(ORDER)
    with pytest.raises(DefinitionError, match="Chatty emits OrderClosed while it applies"):
        chatty.emit(OrderPlaced(total_cents=1))

    assert chatty.uncommitted_events == ()
    chatty.emit(OrderClosed())  # and it goes on as if nothing had happened
    assert chatty.uncommitted_events == (OrderClosed(),)


def test_subclass_takes_over_appliers_and_may_replace_them() -> None:
    """
    Appliers are methods like any other: inherited, or overridden, whether marked again or not.

    One that is overridden for another event does not apply the former event any more.
    """

    class Plain(Order):
        def _placed(self, event: OrderPlaced) -> None:
            super()._placed(event)
            self.notes.append("overridden")

    class Marked(Plain):
        @applies
        def _placed(self, event: OrderPlaced) -> None:
            self.total_cents = -1

    class Other(Order):
        @applies
        def _placed(self, event: OrderLost) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            self.notes.append("lost")

    class Added(Order):
        @applies
        def closed_too(self, event: OrderClosed) -> None:
            self.notes.append("the subclass's goes first")

    plain, marked, other, added = (cls.new(ORDER) for cls in (Plain, Marked, Other, Added))
    for order in (plain, marked):
        order.emit(OrderPlaced(total_cents=5))
        order.emit(OrderPaid(cents=5))
    other.emit(OrderLost())
    added.emit(OrderClosed())

    assert (plain.total_cents, plain.paid_cents, plain.notes) == (5, 5, ["overridden", "OrderPaid"])
    assert (marked.total_cents, marked.paid_cents, marked.notes) == (-1, 5, ["OrderPaid"])
    assert other.notes == ["lost"]
    assert OrderPlaced not in appliers_of(Other)
    assert (added.notes, added.is_closed) == (["the subclass's goes first"], False)


class Twice(Aggregate[OrderId]):
    """Applies an event in two ways."""

    @applies
    def one(self, event: OrderPlaced) -> None: ...

    @applies
    def two(self, event: OrderClosed | OrderPlaced) -> None: ...


class Silent(Aggregate[OrderId]):
    """Does not say what it applies."""

    @applies
    def on(self, event) -> None: ...  # pyright: ignore[reportUnknownParameterType, reportMissingParameterType]


class NoEvent(Aggregate[OrderId]):
    """Applies something else, too."""

    @applies
    def on(self, event: OrderPlaced | int) -> None: ...


class TooMany(Aggregate[OrderId]):
    """Wants more than there is."""

    @applies
    def on(self, event: OrderPlaced, context: int) -> None: ...


class Awaiting(Aggregate[OrderId]):
    """Would never be awaited."""

    @applies  # pyright: ignore[reportArgumentType, reportUntypedFunctionDecorator]
    async def on(self, event: OrderPlaced) -> None: ...


class Checked(Aggregate[OrderId]):
    """Names an event that exists for type checkers only."""

    @applies
    def on(self, event: "Fraction") -> None: ...


class Missing(Aggregate[OrderId]):
    """Has no state before its first event."""

    total_cents: int


class Nameless(Aggregate):  # pyright: ignore[reportMissingTypeArgument]
    """Does not say what identifies it."""


class Shared(Aggregate[OrderId]):
    """All have the same object in their state."""

    lines: deque[str] = deque()


class Unreadable(Aggregate[OrderId], snapshot_every=2):
    """Has a state that JSON cannot tell apart."""

    either: bytes | str = ""


@aggregate_version("ORDER")
class Shouting(Aggregate[OrderId]):
    """Would have the event ids of another aggregate."""


REFUSED: list[tuple[type[Aggregate[Any]], str]] = [
    (Twice, r"Twice\.one and .*Twice\.two both apply OrderPlaced"),
    (Silent, r"Silent\.on must be annotated as \(self, event: SomeEvent\) -> None"),
    (NoEvent, r"NoEvent\.on must be annotated"),
    (TooMany, r"TooMany\.on must be annotated"),
    (Awaiting, r"Awaiting\.on must not be async"),
    (Checked, r"Checked\.on: name 'Fraction' .*TYPE_CHECKING"),
    (Missing, r"Missing: every field needs a default.*'total_cents'"),
    (Nameless, r"Nameless: .*class Nameless\(Aggregate\[NamelessId\]\)"),
    (Shared, r"Shared\.lines: .*share one deque.*default_factory"),
    (Unreadable, r"Unreadable: .*bytes"),
    (Shouting, "Shouting"),
]


@pytest.mark.parametrize(("aggregate", "said"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_aggregate_that_cannot_work_is_refused_when_the_flow_is_opened(
    aggregate: type[Aggregate[Any]], said: str
) -> None:
    """Before any event there is an error that names the class and says what is wrong."""
    with pytest.raises(DefinitionError, match=said):
        checked(Order, aggregate)


def test_state_without_snapshots_may_be_anything() -> None:
    """Only what is stored has to survive JSON."""

    class Rich(Aggregate[OrderId]):
        either: bytes | str = ""
        pair: tuple[int, Any] = (1, object())

    checked(Rich)


@pytest.mark.parametrize("name", ["id", "stream_version", "uncommitted_events", "is_new", "new", "emit", "apply"])
def test_field_that_would_hide_what_every_aggregate_has_is_refused(name: str) -> None:
    """A field called id would send the events to another stream; the class statement says so."""
    with pytest.raises(InvalidHandlerError, match=f"Hiding: {name}: every aggregate has that"):
        type(Aggregate)("Hiding", (Order,), {"__annotations__": {name: str}, name: ""})  # pyright: ignore[reportGeneralTypeIssues]


def test_aggregate_made_without_its_identity_says_how_to_make_it() -> None:
    """State alone belongs to no stream; an attempt to emit does not touch it."""
    order = Order(total_cents=3)

    with pytest.raises(TypeError, match=r"make it with Order\.new\(aggregate_id\)"):
        order.emit(OrderPaid(cents=3))
    with pytest.raises(TypeError, match=r"Order\.new"):
        assert order.id

    assert order == Order(total_cents=3)


@pytest.mark.parametrize("wrong", [ThingyId.new(), "order-0192f0c1-7d3e-7cc1-8f4a-2b1d6f0e9a55", None], ids=repr)
def test_identity_of_another_type_is_refused(wrong: Any) -> None:
    """Under it there is no such aggregate, and one that looks new would be a surprise."""
    with pytest.raises(InvalidIdentityError, match="Order is identified by OrderId, not by"):
        Order.new(wrong)


def test_default_state_is_each_aggregates_own() -> None:
    """Lists, sets, dictionaries and what a factory makes are not shared between aggregates."""

    class Address(msgspec.Struct):
        street: str = ""

    class Customer(Aggregate[OrderId]):
        tags: set[str] = set()
        prices: dict[str, int] = {}
        notes: list[str] = []
        address: Address = msgspec.field(default_factory=Address)

    first, second = Customer.new(ORDER), Customer.new(ORDER)
    first.tags.add("a")
    first.prices["a"] = 1
    first.notes.append("a")
    first.address.street = "a"

    assert second == Customer()
    checked(Customer)


def test_what_is_not_annotated_is_no_state() -> None:
    """Constants of the class and cached values are neither compared nor stored."""

    class Bounded(Order):
        LIMIT = 5
        RATES: ClassVar[dict[str, int]] = {}

        @cached_property
        def doubled(self) -> int:
            return 2 * self.total_cents

    bounded = Bounded.new(ORDER)

    assert bounded.doubled == 0
    assert bounded.__struct_fields__ == Order.__struct_fields__
    assert bounded == Bounded.new(OrderId.new())


def test_stream_is_named_by_the_version_decorator() -> None:
    """A renamed class keeps its streams; a subclass has its own; a saga keyed by the same id has its own."""

    @aggregate_version("Order", 3)
    class Bestellung(Order):
        pass

    class Special(Bestellung):
        pass

    assert str(stream_of(Bestellung, ORDER)) == f"Order {ORDER}"
    assert stream_of(Special, ORDER).aggregate_name == "Special"


K = TypeVar("K", bound=Identity)


class Keyed(Aggregate[K], Generic[K]):
    """A base of aggregates that leaves their identity open."""


def test_identity_is_found_through_bases() -> None:
    """Direct, inherited, or given to a base that leaves it open."""

    class OfThingy(Keyed[ThingyId]):
        pass

    class Derived(OfThingy):
        pass

    assert [id_type(cls) for cls in (Order, OfThingy, Derived)] == [OrderId, ThingyId, ThingyId]
    checked(OfThingy)
    with pytest.raises(InvalidHandlerError, match="Keyed: its base says what identifies it"):
        checked(Keyed)


@pytest.mark.parametrize("every", [0, -1])
def test_snapshots_after_no_events_are_refused(every: int) -> None:
    """The class statement says so."""
    with pytest.raises(ValueError, match=f"snapshot_every={every}"):

        class Never(Order, snapshot_every=every):  # pyright: ignore[reportUnusedClass]
            pass
