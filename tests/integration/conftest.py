"""What the integration tests share."""

import pytest

from eventflow import WorkerSettings
from tests.support.journal import Journal


@pytest.fixture
def journal() -> Journal:
    """What handlers did in this test."""
    return Journal()


@pytest.fixture
def only_when_woken(monkeypatch: pytest.MonkeyPatch) -> WorkerSettings:
    """A worker that would find a job by its own look only long after the test has failed; nobody else may have one."""
    monkeypatch.setattr("eventflow.application.app.LONGEST_TICK_SECONDS", 60.0)
    return WorkerSettings(tick_interval=60.0)
