"""Which aggregates a program knows, and how their snapshots are read."""

from typing import Any

from eventflow.aggregates.aggregate import Aggregate, appliers_of, id_type
from eventflow.definitions import Definitions
from eventflow.errors import InvalidHandlerError, UnknownDefinitionError
from eventflow.ids import Identity


class AggregateDefinitions(Definitions[Aggregate[Any]]):
    """The aggregates. Encoding and decoding one is storing and reading a snapshot of it."""

    def __init__(self) -> None:
        super().__init__(Aggregate, UnknownDefinitionError)

    def check(self) -> None:
        for definition in self:
            appliers_of(definition.type)
            try:
                definition.type()
            except TypeError as exc:
                raise InvalidHandlerError(
                    f"{definition.type.__qualname__}: every field needs a default, which is its state before the first "
                    f"event ({exc})"
                ) from exc
            identity = id_type(definition.type)
            if not (isinstance(identity, type) and issubclass(identity, Identity)):
                raise InvalidHandlerError(f"{definition.type.__qualname__}: Aggregate[...] takes an Identity")
        super().check()
