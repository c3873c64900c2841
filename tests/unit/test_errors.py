"""The errors: one tree, and values that survive a process boundary."""

import copy
import pickle

import pytest

import eventflow
from eventflow import errors
from eventflow.errors import (
    CommitUnknownError,
    DomainError,
    DuplicateCommandHandlerError,
    DuplicateDefinitionError,
    EventFlowError,
    ForeignCursorError,
    ForeignEventsError,
    InvalidCursorError,
    InvalidMessageError,
    JobTimeoutError,
    NoCommandHandlerError,
    PayloadTooLargeError,
    SchemaVersionError,
    ServiceNotFoundError,
    UndecodableMessageError,
    UnknownCommandDefinitionError,
    UnknownJobDefinitionError,
)
from tests.unit.bench import Act, PlaceOrder

EXAMPLES = [
    DomainError("one", "two"),
    DomainError(),
    DuplicateDefinitionError("name", 2, Act, PlaceOrder),
    UnknownCommandDefinitionError("name", 2),
    UnknownJobDefinitionError("name", 3),
    DuplicateCommandHandlerError(PlaceOrder, ["a.b", "c.d"]),
    NoCommandHandlerError(PlaceOrder),
    InvalidMessageError(Act, "number"),
    PayloadTooLargeError(Act, "too large"),
    UndecodableMessageError("name", 1, "$.number"),
    ServiceNotFoundError(int),
    JobTimeoutError(1.5),
    CommitUnknownError(["job-1", "job-2", "job-3", "job-4"]),
    InvalidCursorError("12-x"),
    ForeignCursorError(12, 3),
    ForeignEventsError(12, 3),
    SchemaVersionError("eventflow", None, 3),
    SchemaVersionError("eventflow", 1, 3),
    SchemaVersionError("eventflow", 4, 3),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: f"{type(error).__name__}-{error.args!r}"[:60])
def test_errors_survive_pickling(error: EventFlowError) -> None:
    """An error that crosses a process boundary arrives with its type, its text and its values."""
    for copied in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(copied) is type(error)
        assert str(copied) == str(error)
        assert vars(copied) == vars(error)


def test_all_errors_are_one_tree() -> None:
    """Everything raised on purpose is an EventFlowError, named so, and drawn in the module's picture."""
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]

    assert all(issubclass(cls, EventFlowError) for cls in classes)
    assert all(cls.__name__.endswith("Error") for cls in classes)
    assert errors.__doc__ is not None
    assert [cls.__name__ for cls in classes if cls.__name__ not in errors.__doc__] == []


def test_everything_exported_exists() -> None:
    """All names a program needs are importable from the package itself, in order."""
    assert all(hasattr(eventflow, name) for name in eventflow.__all__)
    assert sorted(set(eventflow.__all__), key=str.lower) == sorted(eventflow.__all__, key=str.lower)


def test_messages_tell_what_to_do() -> None:
    """Errors that an operator meets name the command that helps."""
    missing, older, newer = EXAMPLES[-3:]

    assert "eventflow migrate" in str(missing)
    assert "migration 1" in str(older)
    assert "eventflow migrate" in str(older)
    assert "newer than the 3" in str(newer)
    assert "job-3, …" in str(CommitUnknownError(["job-1", "job-2", "job-3", "job-4"]))
