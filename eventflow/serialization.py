"""
JSON, typed at the edge: what goes in is proven to come out the same.

Structs do not check their fields when they are made, so a message is encoded, decoded and compared before it
is stored (about a microsecond). Subclasses of ``str``, ``int``, ``float`` and ``Decimal`` travel as the bare scalar
and are validated by their own constructor when decoded.
"""

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any, Generic, TypeVar

import msgspec

from eventflow.errors import (
    DefinitionError,
    InvalidMessageError,
    PayloadTooLargeError,
    UndecodableMessageError,
    type_name,
)

MAX_PAYLOAD_BYTES = 1024 * 1024
"""Largest encoded message that is accepted: 1 MiB."""
MAX_DEPTH = 100
"""Deepest nesting of arrays and objects that is accepted."""

T = TypeVar("T")


def _encode_scalar(value: Any) -> Any:  # Any: msgspec hands over whatever it cannot encode itself
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Decimal):
        return Decimal(value)  # msgspec writes it as text
    raise NotImplementedError(f"{type(value).__qualname__} has no JSON form")


def _decode_scalar(wanted: type, value: Any) -> Any:  # Any: the JSON value as msgspec read it
    if issubclass(wanted, Decimal):
        return wanted(_decimal(value))
    for scalar in (str, int, float):
        if issubclass(wanted, scalar):
            if scalar is float and type(value) is int:  # as for a plain float: other languages write 5 for 5.0
                value = float(value)
            if type(value) is not scalar:
                raise ValueError(f"expected `{scalar.__name__}`, got `{type(value).__name__}`")
            return wanted(value)
    raise NotImplementedError(f"{wanted.__qualname__} has no JSON form")


def _decimal(value: Any) -> Decimal:  # Any: as above
    if type(value) not in (str, int, float):
        raise ValueError(f"expected `decimal`, got `{type(value).__name__}`")
    try:
        return Decimal(str(value))
    except InvalidOperation as exc:
        raise ValueError(f"{value!r} is no decimal number") from exc


_encoder = msgspec.json.Encoder(enc_hook=_encode_scalar)


class Codec(Generic[T]):
    """
    JSON of one message type.

    Args:
        message_type: A ``msgspec.Struct``, or anything else msgspec decodes.

    Attributes:
        decode_bare: Like :meth:`decode` for who decodes thousands; raises whatever it meets.

    Raises:
        DefinitionError: the type has fields that JSON cannot tell apart or name.
    """

    def __init__(self, message_type: type[T]) -> None:
        self.message_type = message_type
        try:
            self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(message_type, dec_hook=_decode_scalar)
        except (TypeError, NameError) as exc:
            raise DefinitionError(f"{type_name(message_type)}: {exc}") from exc
        self.decode_bare: Callable[[bytes | str], T] = self._decoder.decode

    def encode(self, message: T) -> bytes:
        """
        The JSON of *message*, after proving that it decodes to an equal message.

        Raises:
            InvalidMessageError: it does not: a field of the wrong type, NaN, a tuple typed as ``Any``, ….
            PayloadTooLargeError: it is larger than :data:`MAX_PAYLOAD_BYTES` or deeper than :data:`MAX_DEPTH`.
        """
        try:
            data = _encoder.encode(message)
        except RecursionError as exc:
            raise PayloadTooLargeError(self.message_type, f"nested deeper than {MAX_DEPTH} levels") from exc
        except (TypeError, ValueError, NotImplementedError, OverflowError) as exc:
            raise InvalidMessageError(self.message_type, text_of(exc)) from exc
        if len(data) > MAX_PAYLOAD_BYTES:
            raise PayloadTooLargeError(self.message_type, f"{len(data)} bytes, {MAX_PAYLOAD_BYTES} are allowed")
        if deeper_than(data, MAX_DEPTH):
            raise PayloadTooLargeError(self.message_type, f"nested deeper than {MAX_DEPTH} levels")
        try:
            decoded = self._decoder.decode(data)
        except Exception as exc:  # as in decode
            raise InvalidMessageError(self.message_type, text_of(exc)) from exc
        if decoded != message:
            raise InvalidMessageError(self.message_type, self._difference(message, decoded))
        return data

    def decode(self, data: bytes | str) -> T:
        """
        The message that *data* stands for.

        Raises:
            UndecodableMessageError: the type refuses it; the reason has the path of the field.
        """
        try:
            return self._decoder.decode(data)
        # Invalid UTF-8 and a depth beyond the interpreter's are not DecodeErrors, and a type's own
        # __post_init__ or __new__ may raise anything.
        except Exception as exc:
            raise UndecodableMessageError(type_name(self.message_type), 0, text_of(exc)) from exc

    def _difference(self, sent: T, received: T) -> str:
        if isinstance(sent, msgspec.Struct):
            for field in sent.__struct_fields__:
                before, after = getattr(sent, field), getattr(received, field, None)
                if before != after:
                    return f"{field}={before!r} would be read back as {after!r}"
        return f"{sent!r} would be read back as {received!r}"


def text_of(error: BaseException, form: Callable[[object], str] = str) -> str:
    """What an error says of itself (*form*: ``str`` or ``repr``), or that its own code for that failed."""
    try:
        return str.__str__(form(error))  # of a subclass of str, the bare text
    except BaseException as exc:  # noqa: BLE001 - a failing __str__ must not cost the worker
        return f"<its __{form.__name__}__ failed: {type(exc).__qualname__}>"


def encode_plain(value: Any) -> bytes:  # Any: a JSON-able value of our own, such as headers
    """JSON of a value that needs no check."""
    return _encoder.encode(value)


def deeper_than(data: bytes, limit: int) -> bool:
    """Whether a JSON text nests arrays and objects more than *limit* levels deep."""
    if data.count(b"{") + data.count(b"[") <= limit:
        return False
    depth, in_string, escaped = 0, False, False
    for byte in data:
        if in_string:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                in_string = False
        elif byte == 0x22:
            in_string = True
        elif byte in b"{[":
            depth += 1
            if depth > limit:
                return True
        elif byte in b"}]":
            depth -= 1
    return False
