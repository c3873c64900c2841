"""Messages: frozen, keyword-only structs that are stored as JSON under a name and a version."""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from typing_extensions import dataclass_transform

T = TypeVar("T", bound=type)

_DECLARATION = "__eventflow_declaration__"


class Declaration(msgspec.Struct, frozen=True):
    """The stored name of a message type: what its version decorator said."""

    name: str
    version: int
    aliases: tuple[str, ...] = ()
    is_reserved: bool = False


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class MessageMeta(msgspec.StructMeta):
    """Makes every subclass frozen and keyword-only; msgspec itself does not inherit ``kw_only``."""

    def __new__(mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> "MessageMeta":
        options.setdefault("frozen", True)
        options.setdefault("kw_only", True)
        return super().__new__(mcls, name, bases, namespace, **options)


# Stands on the base class too: pyright reads it on the metaclass, mypy here.
@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Message(msgspec.Struct, metaclass=MessageMeta):
    """Base of commands and jobs: fields are the annotated attributes, given by keyword, never changed."""


def declare(name: str, version: int, aliases: tuple[str, ...]) -> Callable[[T], T]:
    """The class decorator behind ``command_version`` and ``job_version``."""
    for text in (name, *aliases):
        check_name(text)
    if version < 1:
        raise ValueError(f"the version of {name!r} must be at least 1, not {version}")

    def decorate(message_type: T) -> T:
        setattr(message_type, _DECLARATION, Declaration(name, version, aliases))
        return message_type

    return decorate


def declare_reserved(name: str) -> Callable[[T], T]:
    """Store a type of our own under a name with a colon, which no user's type can have."""

    def decorate(message_type: T) -> T:
        setattr(message_type, _DECLARATION, Declaration(name, 1, is_reserved=True))
        return message_type

    return decorate


def declaration(message_type: type) -> Declaration:
    """The stored name of a type: its decorator's, which subclasses do not inherit, or (class name, 1)."""
    declared = vars(message_type).get(_DECLARATION)
    return declared if isinstance(declared, Declaration) else Declaration(message_type.__name__, 1)


def check_name(name: str) -> None:
    """
    Refuse a name that could not be stored or told apart.

    Raises:
        ValueError: it is empty, longer than 150 characters, or has blanks, colons or control characters.
    """
    if not 1 <= len(name) <= 150 or any(c.isspace() or c == ":" or not c.isprintable() for c in name):
        raise ValueError(f"{name!r} is not a name: 1 to 150 printable characters without blanks and colons")
