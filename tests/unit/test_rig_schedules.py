"""What the rig's seeds stand for."""

import msgspec
import pytest

from reliability.faults import Fault
from reliability.rig.schedules import KINDS, OF_ITS_OWN, schedule
from reliability.scenario import Scenario

SEEDS = range(100)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_seed_is_the_same_schedule_each_time(seed: int) -> None:
    """Also when it is read back from what is kept of a failed one."""
    scenario = schedule(seed)

    assert schedule(seed) == scenario
    assert msgspec.json.decode(msgspec.json.encode(scenario), type=Scenario) == scenario
    assert schedule(seed + 1) != scenario


def test_each_schedule_has_many_kinds_of_faults_and_hundreds_of_jobs() -> None:
    """Faults that need servers of their own kind are not mixed, and all kinds come."""
    seen: set[Fault] = set()
    for scenario in map(schedule, SEEDS):
        kinds = {fault.fault for fault in scenario.faults}
        seen |= kinds
        assert len(kinds) >= KINDS
        assert len(kinds & {*OF_ITS_OWN}) <= 1
        assert len({ask.number for ask in scenario.asks}) > 280
        assert all(fault.target < len(scenario.workers) + scenario.producers for fault in scenario.faults)

    assert seen == set(Fault) - {Fault.BLOCK}  # which jobs ask for


def test_somebody_always_hears_notifications_and_knows_all_jobs() -> None:
    """The others may be old, or behind a pooler."""
    plans = [scenario.workers for scenario in map(schedule, SEEDS)]

    assert all(first.is_new and not first.is_pooled for first, *_ in plans)
    assert any(plan.is_pooled for workers in plans for plan in workers)
    assert any(not plan.is_new for workers in plans for plan in workers)
