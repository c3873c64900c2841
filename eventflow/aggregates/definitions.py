"""Which aggregates a program knows, and how their snapshots are read."""

from typing import Any

from eventflow.aggregates.aggregate import Aggregate, appliers_of, id_type, snapshot_every
from eventflow.definitions import Definitions
from eventflow.errors import DuplicateDefinitionError, InvalidHandlerError, UnknownDefinitionError
from eventflow.ids import Identity


class AggregateDefinitions(Definitions[Aggregate[Any]]):
    """The aggregates. Encoding and decoding one is storing and reading a snapshot of it."""

    def __init__(self) -> None:
        super().__init__(Aggregate, UnknownDefinitionError)

    def check(self) -> None:
        """
        Check all that is known before the first event.

        Raises:
            InvalidHandlerError: appliers, fields or the identity of an aggregate do not fit.
            DuplicateDefinitionError: two aggregates' names differ in case only, so that event ids could be equal.
            DefinitionError: the state of an aggregate with snapshots has a type that JSON cannot carry.
        """
        names: dict[str, type[Aggregate[Any]]] = {}
        for definition in self:
            appliers_of(definition.type)
            _check_identity(definition.type)
            _check_state(definition.type)
            other = names.setdefault(definition.name.lower(), definition.type)
            if self.by_type(other).name != definition.name:
                raise DuplicateDefinitionError(definition.name, definition.version, other, definition.type)
            if snapshot_every(definition.type) is not None or definition.type in self._upgraders:
                self._codec(definition.type)
            self._check_upgrades(definition.type)


def _check_identity(aggregate_type: type[Aggregate[Any]]) -> None:
    identity = id_type(aggregate_type)
    if not (isinstance(identity, type) and issubclass(identity, Identity) and identity is not Identity):
        name = aggregate_type.__qualname__
        raise InvalidHandlerError(f"{name}: its base says what identifies it: class {name}(Aggregate[{name}Id])")


def _check_state(aggregate_type: type[Aggregate[Any]]) -> None:
    try:
        first, second = aggregate_type(), aggregate_type()
    except TypeError as exc:
        raise InvalidHandlerError(
            f"{aggregate_type.__qualname__}: every field needs a default, which is its state before the first "
            f"event ({exc})"
        ) from exc
    for field in aggregate_type.__struct_fields__:
        value = getattr(first, field)
        if value is getattr(second, field) and not _is_hashable(value):  # msgspec copies only what it knows
            raise InvalidHandlerError(
                f"{aggregate_type.__qualname__}.{field}: all aggregates would share one {type(value).__qualname__}; "
                "make it with msgspec.field(default_factory=...)"
            )


def _is_hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
