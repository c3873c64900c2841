"""Places where tests make a process die, and that none is forgotten."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

import eventflow
from eventflow import failpoints
from eventflow.failpoints import FailpointError, failpoint
from reliability.failpoints import SWEPT

SOURCE = Path(eventflow.__file__).parent
CALL = re.compile(r'\bfailpoint\("([^"]*)"\)')


@pytest.fixture
def arm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Arms failpoints as the environment would."""

    def arm(text: str) -> None:
        monkeypatch.setattr(failpoints, "_armed", failpoints._parse(text))

    return arm


def in_source() -> dict[str, list[Path]]:
    """The names of all failpoints in the package, and where they are."""
    found: dict[str, list[Path]] = {}
    for path in SOURCE.rglob("*.py"):
        for name in CALL.findall(path.read_text()):
            found.setdefault(name, []).append(path)
    return found


def test_every_failpoint_is_swept() -> None:
    """Each failpoint of the source is in the list of those that acceptance tests kill a process at, and no other."""
    assert set(in_source()) == set(SWEPT)
    assert all(SWEPT.values())


def test_failpoints_are_named_once_and_alike() -> None:
    """A name stands for one place, and reads as what happens there; no call hides its name."""
    for name, places in in_source().items():
        assert re.fullmatch(r"[a-z]+\.[a-z_]+", name)
        assert len(places) == 1
    calls = sum(len(re.findall(r"(?<!def )\bfailpoint\(", p.read_text())) for p in SOURCE.rglob("*.py"))
    assert calls == len(in_source())


def test_unarmed_failpoint_does_nothing() -> None:
    """Without the environment variable a failpoint is passed."""
    failpoint("claim.committed")


def test_failpoint_acts_once(arm: Any) -> None:
    """A failpoint acts at its first passage and never again; others are passed."""
    arm("claim.committed=raise")

    failpoint("claim.sending")
    with pytest.raises(FailpointError, match=r"claim\.committed"):
        failpoint("claim.committed")
    failpoint("claim.committed")


def test_failpoint_acts_at_the_passage_it_was_told(arm: Any) -> None:
    """With @n a failpoint acts at the n-th passage only."""
    arm("claim.committed=raise@3, settle.sending=raise")

    failpoint("claim.committed")
    failpoint("claim.committed")
    with pytest.raises(FailpointError):
        failpoint("settle.sending")
    with pytest.raises(FailpointError):
        failpoint("claim.committed")
    failpoint("claim.committed")


@pytest.mark.parametrize(("action", "expected"), [("kill", signal.SIGKILL), ("stop", signal.SIGSTOP)])
def test_failpoint_signals_its_own_process(
    arm: Any, monkeypatch: pytest.MonkeyPatch, action: str, expected: signal.Signals
) -> None:
    """Actions kill and stop send the process itself the signal that no handler sees."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    arm(f"claim.committed={action}")

    failpoint("claim.committed")

    assert sent == [(os.getpid(), expected)]


@pytest.mark.parametrize("text", ["claim.committed", "claim.committed=", "claim.committed=explode", "=@", "a=kill@x"])
def test_text_that_means_nothing_is_refused(text: str) -> None:
    """A misspelt failpoint is an error at the start: a test that kills nothing would pass."""
    with pytest.raises(ValueError, match=r"EVENTFLOW_FAILPOINTS|invalid literal"):
        failpoints._parse(text)


def test_nothing_is_fine() -> None:
    """An empty variable, and empty parts, arm nothing."""
    assert failpoints._parse("") == {}
    assert failpoints._parse(" , ") == {}
