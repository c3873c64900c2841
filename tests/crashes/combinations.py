"""What a session asks the sweeps for."""

from collections.abc import Iterable
from typing import TypeVar

import pytest

CombinationT = TypeVar("CombinationT")


def asked_for(items: Iterable[pytest.Item], fixture: str, kind: type[CombinationT]) -> list[CombinationT]:
    """The combinations of the tests that use a fixture, which tries them all before the first of these tests."""
    wanted: list[CombinationT] = []
    for item in items:
        if isinstance(item, pytest.Function) and fixture in item.fixturenames:
            combination = item.callspec.params["combination"]
            assert isinstance(combination, kind)
            wanted.append(combination)
    return wanted
