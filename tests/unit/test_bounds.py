"""The lower bound of a range: it rises, and no job turns up below it unnoticed."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from eventflow.postgres.bounds import MARGIN_US, PATIENCE_US, STEP_US, LowerBounds

MS, SECOND = 1_000, 1_000_000
START = 1_000_000 * SECOND
RANGE = 5


def look(bounds: LowerBounds, at_us: int, *, xids: tuple[int, int] = (100, 100), left: int = 0, **given: Any) -> int:
    """One look, at xids (oldest open, first not begun); returns the bound of the range afterwards."""
    oldest, following = xids
    given = {"open_xid": oldest, "oldest_xid": oldest, "next_xid": following, "left_us": {RANGE: left}} | given
    bounds.learn(at_us, **given)
    return bounds.bounds_us[RANGE - 1] if len(bounds.bounds_us) >= RANGE else 0


def test_bound_follows_a_look_when_its_transactions_have_ended() -> None:
    """Not at once: what was open at the first look may still write below its time."""
    bounds = LowerBounds()
    assert look(bounds, START, xids=(90, 100)) == 0
    assert look(bounds, START + SECOND, xids=(90, 110)) == 0
    assert look(bounds, START + 2 * SECOND, xids=(100, 120)) == START - MARGIN_US
    assert look(bounds, START + 3 * SECOND, xids=(130, 130)) == START + 2 * SECOND - MARGIN_US


def test_bound_stays_at_the_earliest_job_that_was_left() -> None:
    """Locked by another, or unknown to this worker: it may still be claimed."""
    bounds = LowerBounds()
    look(bounds, START)
    assert look(bounds, START + SECOND, left=START - 7 * SECOND) == START - 7 * SECOND
    assert look(bounds, START + 2 * SECOND) == START + SECOND - MARGIN_US


def test_each_range_has_its_own_bound() -> None:
    """A queue that nobody drains holds no other back; one never seen has none."""
    bounds = LowerBounds()
    for second in range(2):
        bounds.learn(
            START + second * SECOND, open_xid=1, oldest_xid=1, next_xid=1, left_us={5: 0, 7: START - 9 * SECOND}
        )
    assert bounds.bounds_us == [0, 0, 0, 0, START - MARGIN_US, 0, START - 9 * SECOND]


def test_transaction_that_is_open_for_long_stops_holding_the_bound_back() -> None:
    """After five seconds it is left out of what is waited for; its jobs are the sweep's to find."""
    bounds = LowerBounds()
    for second in range(6):
        assert look(bounds, START + second * SECOND, xids=(90, 100 + second)) == 0
    assert look(bounds, START + 6 * SECOND, xids=(90, 106)) == 0
    assert 90 < bounds.settled_xid == 100
    assert look(bounds, START + 7 * SECOND, xids=(90, 107), oldest_xid=107) >= START + 6 * SECOND - MARGIN_US
    assert bounds.may_have_passed_jobs


def test_clock_that_was_set_back_takes_the_bounds_away() -> None:
    """New jobs are ready at times that were passed before."""
    bounds = LowerBounds()
    look(bounds, START)
    assert look(bounds, START + SECOND) > 0
    assert look(bounds, START - 3600 * SECOND) == 0
    assert look(bounds, START - 3599 * SECOND) == 0
    assert look(bounds, START - 3598 * SECOND) == START - 3599 * SECOND - MARGIN_US


def test_answer_that_was_late_changes_nothing() -> None:
    """A look on another connection overtook it."""
    bounds = LowerBounds()
    look(bounds, START)
    before = look(bounds, START + SECOND)
    assert look(bounds, START + SECOND - 1, left=START - SECOND) == before
    assert look(bounds, START + SECOND - STEP_US, left=START - SECOND) == before


def test_sweep_is_due_only_if_anybody_may_have_written() -> None:
    """An idle database is not swept once a second."""
    bounds = LowerBounds()
    look(bounds, START, xids=(100, 100))
    assert bounds.may_have_passed_jobs
    bounds.swept(bounds.open_xid)
    look(bounds, START + SECOND, xids=(100, 100))
    assert not bounds.may_have_passed_jobs
    look(bounds, START + 2 * SECOND, xids=(100, 101))
    assert bounds.may_have_passed_jobs
    bounds.swept(bounds.open_xid)
    look(bounds, START + 3 * SECOND, xids=(101, 101))
    assert bounds.may_have_passed_jobs, "the transaction that was open during the sweep has ended"


class Writer(msgspec.Struct, frozen=True):
    """A transaction that makes one job: it reads the clock, gets its number, commits; microseconds from the start."""

    reads_clock: int
    begins_after: int
    commits_after: int

    @property
    def begun(self) -> int:
        return self.reads_clock + self.begins_after

    @property
    def committed(self) -> int:
        return self.begun + self.commits_after


WRITERS = st.lists(
    st.builds(
        Writer,
        reads_clock=st.integers(0, 10 * SECOND),
        begins_after=st.integers(0, MARGIN_US - 1),
        commits_after=st.integers(0, PATIENCE_US - 200 * MS),
    ),
    max_size=30,
)


@given(writers=WRITERS, looks=st.lists(st.integers(0, 16 * SECOND), min_size=2, max_size=60), data=st.data())
def test_no_job_turns_up_below_the_bound(writers: list[Writer], looks: list[int], data: st.DataObject) -> None:
    """Whatever transactions and looks overlap, as long as none of them is open for more than five seconds."""
    xid = {writer: number for number, writer in enumerate(sorted(writers, key=lambda w: w.begun), start=100)}
    bounds = LowerBounds()
    claimed: set[Writer] = set()
    for at in sorted(set(looks)):
        seen = [w for w in writers if w.committed <= at]
        bound = bounds.bounds_us[RANGE - 1] - START if bounds.bounds_us else 0
        passed = [w for w in seen if w not in claimed and w.reads_clock < bound]
        assert not passed, "a claim that starts at the bound cannot see it any more"
        claimed |= {w for w in seen if data.draw(st.booleans(), label="claimed")}
        left = [START + w.reads_clock for w in seen if w not in claimed and w.reads_clock <= at]
        following = 100 + sum(w.begun <= at for w in writers)
        in_flight = [xid[w] for w in writers if w.begun <= at < w.committed]
        bounds.learn(
            START + at,
            open_xid=min(in_flight, default=following),
            oldest_xid=min((x for x in in_flight if x >= bounds.settled_xid), default=following),
            next_xid=following,
            left_us={RANGE: min(left, default=0)},
        )
