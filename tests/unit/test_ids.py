"""Identities, and the ids that follow from content."""

import pickle
from uuid import UUID

import pytest

from eventflow import Identity, InvalidIdentityError, JobId, SourceId, WorkerId
from eventflow.ids import COMMANDS_NAMESPACE, deterministic_uuid, new_uuid
from tests.unit.bench import OrderId, ThingyId

UUID_TEXT = "0192f0c1-7d3e-7cc1-8f4a-2b1d6f0e9a55"


class Id(Identity):
    """An identity whose class name is nothing but the suffix."""


class Pinned(Identity, prefix="order"):
    """An identity whose prefix does not follow its name."""


class Été(Identity):  # noqa: PLC2401 - such names are the point
    """An identity with a name beyond ASCII."""


def test_prefix_is_the_class_name_without_id() -> None:
    """The text of an identity begins with its class name in lower case, without a trailing Id."""
    assert OrderId(f"order-{UUID_TEXT}").uuid == UUID_TEXT
    assert OrderId.new().startswith("order-")


def test_pinned_prefix_survives_a_rename() -> None:
    """A prefix given to the class stands, whatever the class is called."""
    assert Pinned.new().startswith("order-")
    assert Pinned(OrderId.new()).prefix == "order"


def test_class_called_id_has_no_prefix() -> None:
    """A class called Id stands for the bare UUID."""
    assert Id(UUID_TEXT) == UUID_TEXT
    assert UUID(Id.new())


def test_unicode_names_are_prefixes_too() -> None:
    """A class name beyond ASCII is a prefix like any other."""
    made = Été.new()

    assert Été(made) == made
    assert made.startswith("été-")


@pytest.mark.parametrize(
    "text",
    [
        "c6f8a1f0-9a7a-4b7e-8f6e-6b1f3b1c2d3e",
        f"thingyid-{UUID_TEXT}",
        f"thingy-{UUID_TEXT.upper()}",
        "thingy-pppppppp-pppp-pppp-pppp-pppppppppppp",
        f"funny-{UUID_TEXT}",
        "",
        "thingy-",
        f" thingy-{UUID_TEXT}",
        f"thingy-{UUID_TEXT} ",
        f"thingy-{UUID_TEXT}\n",
        f"thingy-{UUID_TEXT}0",
        f"thingy{UUID_TEXT}",
        f"Thingy-{UUID_TEXT}",
        f"thingy-{UUID_TEXT.replace('-', '')}",
        "thingy-\u0661192f0c1-7d3e-7cc1-8f4a-2b1d6f0e9a55",
    ],
)
def test_text_of_another_form_is_refused(text: str) -> None:
    """Only the prefix and a lower-case UUID make an identity; the error shows the text and the type."""
    with pytest.raises(InvalidIdentityError, match="is not a ThingyId") as caught:
        ThingyId(text)

    assert repr(text) in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("value", [None, 7, b"thingy", UUID(UUID_TEXT)])
def test_value_that_is_no_text_is_refused(value: object) -> None:
    """What is not text is refused by the type it has."""
    with pytest.raises(InvalidIdentityError, match=type(value).__name__):
        ThingyId(value)  # pyright: ignore[reportArgumentType] - what untyped callers do


def test_new_identities_sort_by_their_time() -> None:
    """Identities made one after the other sort in this order."""
    made = [OrderId.new() for _ in range(2_000)]

    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert UUID(made[0].uuid).version == 7


@pytest.mark.parametrize(
    ("namespace", "name", "expected"),
    [
        ("769077C6-F84D-46E3-AD2E-828A576AAAF3", b"fantastic 4", "da7ab6b1-c513-581f-a1a0-7cdf17109deb"),
        ("769077C6-F84D-46E3-AD2E-828A576AAAF3", b"test@example.com", "9181a444-af25-567e-a866-c263b6f6119a"),
        ("32154d4f-5b8b-4f9d-a757-af34d371cc95", b"\x00", "92f44232-16c4-541d-91b4-58fc358a6154"),
    ],
)
def test_deterministic_uuid_is_eventflows(namespace: str, name: bytes, expected: str) -> None:
    """A name in a namespace has the same UUID as in EventFlow (.NET)."""
    assert str(deterministic_uuid(UUID(namespace), name)) == expected


def test_deterministic_identity_takes_text_or_bytes() -> None:
    """Text stands for its UTF-8 bytes, and equal content gives an equal identity."""
    namespace = UUID("769077C6-F84D-46E3-AD2E-828A576AAAF3")

    made = ThingyId.deterministic(namespace, "fantastic 4")

    assert made == ThingyId.deterministic(namespace, b"fantastic 4")
    assert made == "thingy-da7ab6b1-c513-581f-a1a0-7cdf17109deb"
    assert made != ThingyId.deterministic(COMMANDS_NAMESPACE, "fantastic 4")


def test_identity_is_its_text_and_shows_its_type() -> None:
    """An identity is equal to its text, and its repr is the call that makes it."""
    order_id = OrderId(f"order-{UUID_TEXT}")

    assert order_id == f"order-{UUID_TEXT}"
    assert f"{order_id}" == f"order-{UUID_TEXT}"
    assert repr(order_id) == f"OrderId('order-{UUID_TEXT}')"
    assert type(pickle.loads(pickle.dumps(order_id))) is OrderId


def test_job_and_worker_ids_are_identities() -> None:
    """Jobs and workers have identities of their own kinds, which cannot be taken for one another."""
    job_id = JobId.new()

    assert JobId(job_id).startswith("job-")
    with pytest.raises(InvalidIdentityError, match="WorkerId"):
        WorkerId(job_id)


def test_source_id_is_any_bounded_text() -> None:
    """A source id may be any text of 1 to 200 characters; a new one is a command's."""
    assert SourceId("x") == "x"
    assert UUID(SourceId.new().removeprefix("command-")).version == 7
    for text in ("", "x" * 201):
        with pytest.raises(InvalidIdentityError, match="1 to 200"):
            SourceId(text)


def test_new_uuid_is_a_version_7() -> None:
    """A new UUID carries its time."""
    assert UUID(new_uuid()).version == 7
