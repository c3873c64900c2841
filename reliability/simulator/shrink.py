"""From a scenario that fails to the least one that fails the same way."""

from collections.abc import Iterator
from typing import TypeVar

import msgspec

from reliability.checker import numbers_of
from reliability.scenario import Ask, Scenario
from reliability.simulator.run import play

T = TypeVar("T")


def shrink(failing: Scenario) -> Scenario:
    """Leave out whatever can be left out, one after the other, until nothing can."""
    wanted = set(numbers_of(play(failing).violations))
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for smaller in _smaller(failing):
            if wanted & set(numbers_of(play(smaller).violations)):
                failing, is_smaller = smaller, True
                break
    return failing


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    for number in range(len(scenario.faults)):
        yield msgspec.structs.replace(scenario, faults=_without(scenario.faults, number))
    for number in range(len(scenario.asks)):
        yield msgspec.structs.replace(scenario, asks=_without(scenario.asks, number))
    for number, ask in enumerate(scenario.asks):
        for plainer in _plainer(ask):
            asks = (*scenario.asks[:number], plainer, *scenario.asks[number + 1 :])
            yield msgspec.structs.replace(scenario, asks=asks)


def _plainer(ask: Ask) -> Iterator[Ask]:
    plain = Ask(at=ask.at, producer=ask.producer, number=ask.number, what=ask.what)
    for name in ("delay", "nap", "block", "failures", "children", "is_deadly"):
        if getattr(ask, name) != getattr(plain, name):
            yield msgspec.structs.replace(ask, **{name: getattr(plain, name)})


def _without(items: tuple[T, ...], number: int) -> tuple[T, ...]:
    return items[:number] + items[number + 1 :]
