"""The stored form of errors: bounded, quickly made, and free of what tables refuse."""

import json
from collections.abc import Callable

import pytest

from eventflow.jobs.error_text import MAX_ERROR_CHARACTERS, describe_error, is_unwieldy


class UnprintableError(Exception):
    """An error whose text cannot be made."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class VeryUnprintableError(Exception):
    """An error whose text ends the process."""

    def __str__(self) -> str:
        raise SystemExit(3)


def raised_often(times: int) -> ValueError:
    """One error object that is raised again and again, as one in a module's variable may be."""
    error = ValueError("again")
    for _ in range(times):
        try:
            raise error
        except ValueError:
            pass
    return error


def with_causes(count: int) -> ValueError:
    """An error with a cause with a cause with a cause."""
    error = ValueError("first")
    for number in range(count):
        following = ValueError(number)
        following.__cause__ = error
        error = following
    return error


def with_notes(text: str) -> ValueError:
    """An error with a note."""
    error = ValueError("noted")
    error.add_note(text)
    return error


UNWIELDY: dict[str, Callable[[], BaseException]] = {
    "lines": lambda: ValueError("x\n" * 20_000),
    "note": lambda: with_notes("x\n" * 20_000),
    "wide": lambda: ExceptionGroup("wide", [ValueError(number) for number in range(1_000)]),
    "long member": lambda: ExceptionGroup("one", [ValueError("x\n" * 20_000)]),
    "causes": lambda: with_causes(1_000),
    "raised often": lambda: raised_often(10_000),
}


def test_nul_is_replaced() -> None:
    """No table takes NUL; a visible sign stands for it."""
    described = describe_error(ValueError("a\0b"))

    assert "\\u0000" not in described
    assert json.loads(described)["message"] == "a␀b"


def test_lone_surrogates_are_escaped() -> None:
    """Text that is no Unicode is kept as escapes."""
    described = describe_error(ValueError("a\ud800b"))

    described.encode()
    assert json.loads(described)["message"] == "a\\ud800b"


def test_long_text_is_cut_in_the_middle() -> None:
    """A text of 50 MB becomes its beginning and its end, and says how much is missing."""
    described = json.loads(describe_error(ValueError("b" + "x" * 50_000_000 + "e")))

    assert len(described["message"]) < MAX_ERROR_CHARACTERS + 100
    assert described["message"].startswith("bxx")
    assert described["message"].endswith("xxe")
    assert "characters left out" in described["message"]
    assert len(described["traceback"]) < MAX_ERROR_CHARACTERS + 100


@pytest.mark.parametrize("error", [UnprintableError(), VeryUnprintableError()], ids=["exception", "exit"])
def test_error_that_cannot_be_printed_is_described_by_that(error: Exception) -> None:
    """An error whose __str__ fails still has its type and traceback."""
    described = json.loads(describe_error(error))

    assert described["type"].endswith(type(error).__name__)
    assert "__str__ failed" in described["message"]


def test_errors_of_errors_are_in_the_traceback() -> None:
    """Causes are part of what is kept."""
    try:
        try:
            raise OSError("first")
        except OSError as exc:
            raise ValueError("second") from exc
    except ValueError as exc:
        described = json.loads(describe_error(exc))

    assert "OSError: first" in described["traceback"]


@pytest.mark.parametrize("make", UNWIELDY.values(), ids=UNWIELDY)
def test_unwieldy_error_is_described_by_its_nearest(make: Callable[[], BaseException]) -> None:
    """One that is too large to be printed in full keeps its last frames and first relatives."""
    error = make()

    assert is_unwieldy(error)
    described = json.loads(describe_error(error))
    assert described["type"].endswith(type(error).__name__)
    assert type(error).__name__ in described["traceback"]
    assert len(described["traceback"]) < MAX_ERROR_CHARACTERS + 100


def test_some_members_of_a_large_group_are_kept() -> None:
    """A group too large to be printed shows its first errors."""
    described = json.loads(describe_error(UNWIELDY["wide"]()))

    assert "with builtins.ValueError: 0\nwith builtins.ValueError: 1\n" in described["traceback"]


def test_causes_in_a_circle_are_nothing_special() -> None:
    """Two errors that are each other's cause are printed once each."""
    error, other = ValueError("one"), OSError("two")
    error.__cause__, other.__cause__ = other, error

    assert not is_unwieldy(error)
    assert json.loads(describe_error(error))["traceback"].count("OSError: two") == 1
