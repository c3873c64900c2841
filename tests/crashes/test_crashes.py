"""A process dies by SIGKILL at every failpoint, its jobs in every state; afterwards everything has happened."""

import sys
from collections.abc import Mapping

import pytest

from tests.crashes.sweep import Combination, Result, combinations

pytestmark = [
    pytest.mark.timeout(300),  # the first test waits for all that run beside it
    pytest.mark.skipif(sys.platform != "linux", reason="/proc shows whether a process stands still"),
]


@pytest.mark.parametrize("combination", combinations("worker"), ids=str)
def test_worker(combination: Combination, results: Mapping[Combination, Result]) -> None:
    """
    A worker dies: each of its jobs ends once, as it would have, and others have it within two seconds.

    Attempts that it did not end are given back, its death is counted, follow-up jobs exist exactly once, and nothing
    starts early. A combination that cannot be reached is tried too: the worker goes on to the end.
    """
    _judge(results[combination])


@pytest.mark.parametrize("combination", combinations("rescuer"), ids=str)
def test_rescuer(combination: Combination, results: Mapping[Combination, Result]) -> None:
    """The same for a worker that dies while it rescues the jobs of another."""
    _judge(results[combination])


@pytest.mark.parametrize("combination", combinations("producer"), ids=str)
def test_producer(combination: Combination, results: Mapping[Combination, Result]) -> None:
    """What was committed is found within two seconds, although nobody was notified; of the rest there is no trace."""
    _judge(results[combination])


def _judge(result: Result) -> None:
    if result.error is not None:
        raise result.error
