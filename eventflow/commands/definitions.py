"""Which commands a program can read and write."""

from typing import Any

import msgspec

from eventflow.commands.command import AnyCommand, check_identified
from eventflow.definitions import Definition, Definitions
from eventflow.errors import UndecodableMessageError, UnknownCommandDefinitionError
from eventflow.ids import SourceId
from eventflow.serialization import Codec


class _Identified(msgspec.Struct):
    """The one field that a stored command must have; without it each decode would make a new operation."""

    source_id: SourceId


_identified = Codec(_Identified)


class CommandDefinitions(Definitions[AnyCommand[Any]]):
    """The commands; an upgraded command keeps its source id and its aggregate id."""

    def __init__(self) -> None:
        super().__init__(AnyCommand, UnknownCommandDefinitionError)

    def encode(self, message: AnyCommand[Any]) -> tuple[Definition[AnyCommand[Any]], bytes]:
        check_identified(message)
        return super().encode(message)

    def _read(self, definition: Definition[AnyCommand[Any]], data: bytes | str) -> AnyCommand[Any]:
        try:
            _identified.decode(data)
        except UndecodableMessageError as exc:
            raise UndecodableMessageError(definition.name, definition.version, exc.reason) from exc
        return super()._read(definition, data)

    def _upgrade(self, message: AnyCommand[Any]) -> AnyCommand[Any]:
        upgraded = super()._upgrade(message)
        identity = ("source_id", "aggregate_id")
        fields = set(message.__struct_fields__) & set(upgraded.__struct_fields__) & set(identity)
        return msgspec.structs.replace(upgraded, **{field: getattr(message, field) for field in fields})
