"""Stored names: what decorators say and what is refused."""

import pytest

from eventflow import Job, JobContext, command_version, job_version
from eventflow.messages import check_name, declaration


@job_version("Reminder", 3, aliases=["Nudge"])
class Remind(Job):
    """A job with a stored name of its own."""

    async def execute(self, context: JobContext) -> None: ...


class RemindLoudly(Remind):
    """Derived, without a decorator."""


class OldTimerJobV5(Job):
    """A name that EventFlow (.NET) would take apart."""

    async def execute(self, context: JobContext) -> None: ...


def test_decorator_names_the_stored_message() -> None:
    """The decorator's name, version and aliases are the stored ones."""
    declared = declaration(Remind)

    assert (declared.name, declared.version, declared.aliases) == ("Reminder", 3, ("Nudge",))


def test_decorator_is_not_inherited() -> None:
    """A subclass without a decorator has its own class name and version 1: two types never share a name unseen."""
    declared = declaration(RemindLoudly)

    assert (declared.name, declared.version, declared.aliases) == ("RemindLoudly", 1, ())


def test_class_name_is_taken_as_it_is() -> None:
    """Without a decorator the class name is the stored name, whatever it looks like, and the version is 1."""
    declared = declaration(OldTimerJobV5)

    assert (declared.name, declared.version) == ("OldTimerJobV5", 1)


@pytest.mark.parametrize("name", ["", " ", "a b", "a:b", "PublishCommand:x", "a\0b", "a\nb", "x" * 151, "a\u200bb"])
def test_names_that_cannot_be_stored_are_refused(name: str) -> None:
    """Names are 1 to 150 printable characters without blanks and colons, in decorators and aliases alike."""
    with pytest.raises(ValueError, match="is not a name"):
        check_name(name)
    with pytest.raises(ValueError, match="is not a name"):
        job_version(name)
    with pytest.raises(ValueError, match="is not a name"):
        command_version("Fine", aliases=[name])


@pytest.mark.parametrize("name", ["A", "x" * 150, "Cömmand", "my-job.v2", "注文"])
def test_other_names_are_fine(name: str) -> None:
    """Letters of any script, digits and punctuation may be in a name."""
    check_name(name)


@pytest.mark.parametrize("version", [0, -1])
def test_versions_are_positive(version: int) -> None:
    """A version is at least 1."""
    with pytest.raises(ValueError, match="at least 1"):
        job_version("Reminder", version)
