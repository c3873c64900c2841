"""Tries the combinations that the session asks for, many at once, before the first test looks at its own."""

import statistics
from collections.abc import Mapping, Sequence
from datetime import timedelta

import pytest

from tests.crashes.combinations import asked_for
from tests.crashes.sweep import Combination, Result, sweep
from tests.support.postgres import PostgresServer

AT_ONCE = 8
"""Combinations under way: so many keep two processors busy, and the server's connections suffice."""
RESULTS = pytest.StashKey[Mapping[Combination, Result]]()


@pytest.fixture(scope="session")
def results(
    request: pytest.FixtureRequest, postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[Combination, Result]:
    """What came of each combination."""
    wanted = asked_for(request.session.items, "results", Combination)
    databases = [postgres.create_migrated() for _ in range(min(AT_ONCE, len(wanted)))]
    found = request.config.stash[RESULTS] = sweep(wanted, databases, tmp_path_factory.mktemp("crashes"))
    for database in databases:
        postgres.drop(database.name)
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show how many combinations there were, and how long others took to have the jobs."""
    found = config.stash.get(RESULTS, dict[Combination, Result]())
    if not found:
        return
    results = found.values()
    restarts = [restart for result in results for restart in result.restarts]
    reached = sum(result.reached for result in results)
    terminalreporter.section("crashes")
    terminalreporter.line(f"{len(results)} combinations, {reached} with a kill, the others cannot be reached")
    for combination, result in found.items():
        for doubt in result.doubts:
            terminalreporter.line(f"tried again: {combination}: {doubt}")
    for what, times in (
        ("free again", [restart.freed for restart in restarts]),
        ("claimed again", [restart.claimed for restart in restarts if restart.claimed]),
    ):
        if times:
            terminalreporter.line(f"kill until {what}: {_described(times)}")


def _described(times: Sequence[timedelta]) -> str:
    seconds = sorted(time.total_seconds() for time in times)
    return f"median {statistics.median(seconds):.2f} s, longest {seconds[-1]:.2f} s, {len(seconds)} jobs"
