"""One registry for all stored messages: (name, version) ↔ type, aliases, upgraders."""

import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import msgspec

from eventflow.errors import (
    DefinitionError,
    DuplicateDefinitionError,
    InvalidHandlerError,
    UndecodableMessageError,
    UnknownDefinitionError,
)
from eventflow.messages import check_name, declaration
from eventflow.serialization import Codec, text_of

M = TypeVar("M", bound=msgspec.Struct)


class Definition(msgspec.Struct, Generic[M], frozen=True):
    """A message type under its stored name and version."""

    name: str
    version: int
    type: type[M]

    def __str__(self) -> str:
        return f"{self.name} v{self.version} ({self.type.__module__}.{self.type.__qualname__})"


class Definitions(Generic[M]):
    """
    The message types of one kind that a program can read and write.

    Adding the same type twice is once. What a name and version mean is settled when they are looked up first
    by :meth:`check`, so the order of registration does not matter.

    Args:
        base: What every type derives from.
        unknown: The error for a name that nobody registered.
    """

    def __init__(self, base: type[M], unknown: type[UnknownDefinitionError] = UnknownDefinitionError) -> None:
        self._base = base
        self._unknown = unknown
        self._by_name: dict[tuple[str, int], Definition[M]] = {}
        self._by_type: dict[type[M], Definition[M]] = {}
        # Any: each upgrader takes its own source type. With it stands the type it leads to.
        self._upgraders: dict[type[M], tuple[Callable[[Any], M], type[M]]] = {}
        self._codecs: dict[type[M], Codec[M]] = {}

    def add(self, message_type: type[M]) -> Definition[M]:
        """
        Register a type under the name its decorator gave, or (class name, 1).

        Raises:
            InvalidHandlerError: it is not a concrete subclass of the base.
            DuplicateDefinitionError: another type has this name and version.
        """
        known = self._by_type.get(message_type)
        if known is not None:
            return known
        if not _is_subclass(message_type, self._base):
            raise InvalidHandlerError(f"{message_type!r} is not a subclass of {self._base.__name__}")
        if message_type is self._base or _is_abstract(message_type):
            raise InvalidHandlerError(f"{message_type.__qualname__} is abstract and cannot be stored")
        stored = declaration(message_type)
        try:
            if not stored.is_reserved:
                check_name(stored.name)
        except ValueError as exc:
            raise InvalidHandlerError(f"{message_type.__qualname__}: {exc}") from exc
        definition = Definition(stored.name, stored.version, message_type)
        for name in (stored.name, *stored.aliases):
            other = self._by_name.get((name, stored.version))
            if other is not None:
                raise DuplicateDefinitionError(name, stored.version, other.type, message_type)
        for name in (stored.name, *stored.aliases):
            self._by_name[name, stored.version] = definition
        self._by_type[message_type] = definition
        return definition

    def add_upgrader(self, upgrade: Callable[[Any], M]) -> None:  # Any: its own source type
        """
        Register a function from an old type to the one that follows it; both are read from its annotations.

        Raises:
            InvalidHandlerError: the annotations are missing or not of this kind.
            DefinitionError: the old type has an upgrader already.
        """
        source, target = upgrader_types(upgrade)
        for message_type in (source, target):
            self.add(message_type)
        if self._upgraders.setdefault(source, (upgrade, target))[0] is not upgrade:
            raise DefinitionError(f"{source.__qualname__} has two upgraders; chain them instead")

    def check(self) -> None:
        """
        Build what encodes and decodes every type.

        Raises:
            DefinitionError: a type that JSON cannot carry, or upgraders that go in a circle.
        """
        for message_type in self._by_type:
            self._codec(message_type)
            self._check_upgrades(message_type)

    def __iter__(self) -> Iterator[Definition[M]]:
        return iter(self._by_type.values())

    def __contains__(self, message_type: type) -> bool:
        return message_type in self._by_type

    def names(self) -> Iterable[tuple[str, int]]:
        """Every stored (name, version) that can be read, aliases included."""
        return self._by_name.keys()

    def versions(self, name: str) -> list[Definition[M]]:
        """The definitions of a name, by version ascending; empty if there is none."""
        found = (d for (stored, _), d in self._by_name.items() if stored == name)
        return sorted(found, key=lambda definition: definition.version)

    def by_name(self, name: str, version: int) -> Definition[M]:
        """The definition stored as (name, version); raises the registry's unknown error."""
        definition = self._by_name.get((name, version))
        if definition is None:
            raise self._unknown(name, version)
        return definition

    def by_type(self, message_type: type[M]) -> Definition[M]:
        """The definition of a type; raises the registry's unknown error."""
        definition = self._by_type.get(message_type)
        if definition is None:
            stored = declaration(message_type)
            raise self._unknown(stored.name, stored.version)
        return definition

    def current(self, name: str, version: int) -> type[M]:
        """The type that a stored (name, version) is read as, once upgraded."""
        message_type: type[Any] = self.by_name(name, version).type  # Any: what upgraders lead to, checked before
        while message_type in self._upgraders:
            message_type = self._upgraders[message_type][1]
        return message_type

    def encode(self, message: M) -> tuple[Definition[M], bytes]:
        """The definition and the JSON of a message, proven to read back equal."""
        definition = self.by_type(type(message))
        return definition, self._codec(definition.type).encode(message)

    def decode(self, name: str, version: int, data: bytes | str) -> M:
        """
        The message that was stored under (name, version), upgraded to its newest type.

        Raises:
            UnknownDefinitionError: nobody registered it.
            UndecodableMessageError: its type or an upgrader refuses it.
        """
        definition = self.by_name(name, version)
        try:
            message = self._read(definition, data)
            while type(message) in self._upgraders:
                message = self._upgrade(message)
        except UndecodableMessageError as exc:
            raise UndecodableMessageError(name, version, exc.reason) from exc
        return message

    def _read(self, definition: Definition[M], data: bytes | str) -> M:
        return self._codec(definition.type).decode(data)

    def _upgrade(self, message: M) -> M:
        upgrade, target = self._upgraders[type(message)]
        try:
            upgraded = upgrade(message)
        except Exception as exc:
            raise UndecodableMessageError("", 0, f"{upgrade.__qualname__} failed: {text_of(exc, repr)}") from exc
        if type(upgraded) is not target:  # its next upgrader would be another's, or itself for ever
            reason = f"{upgrade.__qualname__} returned {type(upgraded).__qualname__}, not {target.__qualname__}"
            raise UndecodableMessageError("", 0, reason)
        return upgraded

    def _codec(self, message_type: type[M]) -> Codec[M]:
        codec = self._codecs.get(message_type)
        if codec is None:
            codec = self._codecs[message_type] = Codec(message_type)
        return codec

    def _check_upgrades(self, message_type: type[M]) -> None:
        seen = [message_type]
        while seen[-1] in self._upgraders:
            following = self._upgraders[seen[-1]][1]
            if following in seen:
                circle = " → ".join(t.__qualname__ for t in (*seen, following))
                raise DefinitionError(f"upgraders go in a circle: {circle}")
            seen.append(following)


def _is_subclass(candidate: object, base: type) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, base)


def _is_abstract(message_type: type) -> bool:
    # Structs have a metaclass of their own, so that ABCMeta does not keep count for them.
    return any(getattr(getattr(message_type, name), "__isabstractmethod__", False) for name in dir(message_type))


def upgrader_types(upgrade: Callable[[Any], Any]) -> tuple[type[Any], type[Any]]:
    """The types an upgrader reads and returns, from its annotations."""
    hints = annotations_of(upgrade)
    target = hints.pop("return", None)
    source = next(iter(hints.values()), None)
    if len(hints) != 1 or not isinstance(source, type) or not isinstance(target, type):
        raise InvalidHandlerError(f"{describe(upgrade)} must be annotated as (old: OldType) -> NewType")
    return source, target


def annotations_of(function: Callable[..., Any]) -> dict[str, Any]:
    """
    The resolved annotations of a function, in the order of its parameters.

    Raises:
        InvalidHandlerError: a name in them does not exist at run time.
    """
    try:
        return typing.get_type_hints(function)
    except NameError as exc:
        raise InvalidHandlerError(
            f"{describe(function)}: {exc}; names in its annotations must be importable at run time, "
            "not only under TYPE_CHECKING"
        ) from exc
    except TypeError as exc:
        raise InvalidHandlerError(f"{describe(function)} is not a function: {exc}") from exc


def describe(function: Callable[..., Any]) -> str:
    """Module and qualified name, to point a reader to the code."""
    name = getattr(function, "__qualname__", None)
    return f"{function.__module__}.{name}" if name else repr(function)
