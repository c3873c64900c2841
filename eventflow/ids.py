"""Identifiers: aggregates', jobs', workers', and of the operations that cause a change."""

import hashlib
import re
from typing import Any, ClassVar, Self
from uuid import UUID

import uuid_utils

from eventflow.errors import InvalidIdentityError

COMMANDS_NAMESPACE = UUID("4286d89f-7f92-430b-8e00-e468fe3c3f59")
"""Namespace of the deterministic source ids of commands, as in EventFlow (.NET)."""

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def new_uuid() -> str:
    """A UUIDv7, as text: ordered by the millisecond it was made in."""
    return str(uuid_utils.uuid7())


def deterministic_uuid(namespace: UUID, name: bytes) -> UUID:
    """
    The UUIDv5 of *name* in *namespace*, equal for equal input.

    Source: RFC 9562 §5.5. (``uuid.uuid5`` takes bytes only from Python 3.12 on.)
    """
    digest = hashlib.sha1(namespace.bytes + name, usedforsecurity=False).digest()
    return UUID(bytes=digest[:16], version=5)


class Identity(str):
    """
    Identity of an aggregate: ``<prefix>-<uuid>``, a ``str`` with a type of its own.

    The prefix is the class name in lower case without a trailing ``Id``; ``class OrderId(Identity,
    prefix="order")`` pins it, so that it survives a rename. In JSON it is the bare string.

    Raises:
        InvalidIdentityError: the text is not of this form.

    >>> class OrderId(Identity):
    ...     pass
    >>> OrderId("order-0192f0c1-7d3e-7cc1-8f4a-2b1d6f0e9a55")
    OrderId('order-0192f0c1-7d3e-7cc1-8f4a-2b1d6f0e9a55')
    >>> OrderId("ship-0192f0c1-7d3e-7cc1-8f4a-2b1d6f0e9a55")
    Traceback (most recent call last):
    eventflow.errors.InvalidIdentityError: 'ship-0192f0c1-7d3e-7cc1-8f4a-2b1d6f0e9a55' is not an OrderId: \
it does not start with 'order-'
    """

    __slots__ = ()
    prefix: ClassVar[str] = ""

    def __init_subclass__(cls, *, prefix: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if prefix is None:
            name = cls.__name__
            prefix = "" if name == "Id" else name.removesuffix("Id").lower()
        cls.prefix = prefix

    def __new__(cls, text: str) -> Self:
        reason = cls._problem(text)
        if reason:
            raise InvalidIdentityError(f"{text!r} is not {_article(cls.__name__)}: {reason}")
        return str.__new__(cls, text)

    @classmethod
    def new(cls) -> Self:
        """A new identity; identities sort by the time they were made (UUIDv7)."""
        return cls.of(new_uuid())

    @classmethod
    def deterministic(cls, namespace: UUID, name: str | bytes) -> Self:
        """The identity that *name* always has in *namespace* (UUIDv5)."""
        data = name.encode() if isinstance(name, str) else name
        return cls.of(str(deterministic_uuid(namespace, data)))

    @classmethod
    def of(cls, uuid: str) -> Self:
        """The identity around a UUID in its canonical text form; the text is not checked."""
        return str.__new__(cls, f"{cls.prefix}-{uuid}" if cls.prefix else uuid)

    @property
    def uuid(self) -> str:
        """The UUID in it, as text."""
        return self[-36:]

    @classmethod
    def _problem(cls, text: object) -> str | None:
        if not isinstance(text, str):
            return f"expected text, got {type(text).__name__}"
        start = f"{cls.prefix}-" if cls.prefix else ""
        if not text.startswith(start):
            return f"it does not start with {start!r}"
        if not _UUID.fullmatch(text, len(start)):
            return "a lower-case UUID does not follow the prefix" if start else "it is not a lower-case UUID"
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str.__repr__(self)})"


class JobId(Identity, prefix="job"):
    """Identity of a job, made by the process that schedules it."""

    __slots__ = ()


class WorkerId(Identity, prefix="worker"):
    """Identity of one incarnation of a worker; a worker that lost its lease goes on under a new one."""

    __slots__ = ()


class SourceId(str):
    """
    Identity of the operation that causes a change; the same source id twice is a duplicate.

    Any text of 1 to 200 characters; commands make ``command-<uuid>``.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if not 1 <= len(text) <= 200:
            raise InvalidIdentityError(f"a source id has 1 to 200 characters, not {len(text)}")
        return str.__new__(cls, text)

    @classmethod
    def new(cls) -> Self:
        """A new source id for a command."""
        return str.__new__(cls, f"command-{new_uuid()}")

    @classmethod
    def deterministic(cls, data: bytes) -> Self:
        """The source id that a command with this content always has."""
        return str.__new__(cls, f"command-{deterministic_uuid(COMMANDS_NAMESPACE, data)}")


def _article(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}"
