"""What is kept of an error: bounded, quickly made, and free of what tables refuse."""

import traceback
from collections import deque
from collections.abc import Iterator
from itertools import islice
from types import TracebackType

from eventflow.serialization import encode_plain, text_of

MAX_ERROR_CHARACTERS = 8_000
"""Longest message and longest traceback kept of an error."""
MOST_ERRORS = 100
"""An error with more causes and members than this is not formatted in full; nor one with more frames than those:"""
MOST_FRAMES = 2_000
LAST_FRAMES = 50
FIRST_RELATED = 5
"""What is shown of such an error: the frames next to where it was raised, and some of its causes or members."""


def describe_error(error: BaseException) -> str:
    """
    JSON object of an error: ``type``, ``message``, ``traceback``; bounded, and free of what tables refuse.

    An error that cannot even be printed is described by that.
    """
    parts = {"type": _type_name(error), "message": text_of(error), "traceback": _traceback(error)}
    return encode_plain({name: storable(text) for name, text in parts.items()}).decode()


def is_unwieldy(error: BaseException) -> bool:
    """
    Whether the traceback of an error cannot be printed, or is so large that this would hold everybody up.

    A text of 50 MB in lines takes seconds, and so does one exception object that was raised a hundred thousand times.
    """
    try:
        return _exceeds(error)
    except BaseException:  # noqa: BLE001 - an error may be of any type, with code of its own in every attribute
        return True


def storable(text: str) -> str:
    """A text of bounded length without NUL and lone surrogates: the beginning and the end of a long one."""
    if len(text) > MAX_ERROR_CHARACTERS:
        half = MAX_ERROR_CHARACTERS // 2
        text = f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"
    return text.replace("\0", "\N{SYMBOL FOR NULL}").encode("utf-8", "backslashreplace").decode()


def _exceeds(error: BaseException) -> bool:
    frames = 0
    seen: dict[int, BaseException] = {}
    pending = [error]
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen[id(current)] = current
        frames += sum(1 for _ in islice(_frames(current), MOST_FRAMES + 1))
        notes: list[object] = getattr(current, "__notes__", [])
        text = len(f"{type(current).__module__}.{type(current).__qualname__}: {text_of(current)}")
        text += sum(len(str(note)) for note in notes)
        if len(seen) > MOST_ERRORS or frames > MOST_FRAMES or text > MAX_ERROR_CHARACTERS:
            return True
        pending += _related(current)
    return False


def _related(error: BaseException) -> list[BaseException]:
    related = [other for other in (error.__cause__, error.__context__) if other is not None]
    if isinstance(error, BaseExceptionGroup):
        related += error.exceptions[: MOST_ERRORS + 1]  # pyright: ignore[reportUnknownMemberType]  of whatever kind
    return related


def _traceback(error: BaseException) -> str:
    try:
        if not is_unwieldy(error):
            return "".join(traceback.format_exception(error))
        last = deque(_frames(error), LAST_FRAMES)
        lines = traceback.format_tb(last[0]) if last else []
        with_it = [f"\nwith {_line(other)}" for other in _related(error)[:FIRST_RELATED]]
    except BaseException as exc:  # noqa: BLE001 - as above
        return f"<its traceback cannot be formatted: {type(exc).__qualname__}>"
    return "".join([*lines, _line(error), *with_it])


def _line(error: BaseException) -> str:
    return f"{_type_name(error)}: {text_of(error)}"


def _frames(error: BaseException) -> Iterator[TracebackType]:
    frame = error.__traceback__
    while frame is not None:
        yield frame
        frame = frame.tb_next


def _type_name(error: BaseException) -> str:
    try:
        return f"{type(error).__module__}.{type(error).__qualname__}"
    except BaseException:  # noqa: BLE001 - as above
        return "<its type has no name>"
