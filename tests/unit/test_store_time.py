"""The store's time, known without asking: never ahead of the truth."""

from hypothesis import given
from hypothesis import strategies as st

from eventflow import ManualClock
from eventflow.jobs.worker.store_time import DRIFT, StoreTime

START_US = 1_900_000_000_000_000

STEPS = st.lists(
    st.tuples(
        st.floats(0, 100),  # seconds of pause before asking
        st.floats(0, 5),  # seconds until the store reads its clock
        st.floats(0, 5),  # seconds until its answer arrives
    ),
    min_size=1,
    max_size=12,
)


@given(STEPS, st.floats(-DRIFT * 0.99, DRIFT * 0.99))
def test_bound_is_never_ahead_of_the_store(steps: list[tuple[float, float, float]], drift: float) -> None:
    """Whatever the drift of the clocks and the delays on the way, the bound is at most the store's true time."""
    clock = ManualClock()

    def truth_us() -> float:
        return START_US + clock.monotonic() * (1 + drift) * 1e6

    store_time = StoreTime(clock)
    for pause, there, back in steps:
        clock.advance(pause)
        assert store_time.bound_us() <= truth_us() + 1
        asked_at = clock.monotonic()
        clock.advance(there)
        read_us = int(truth_us())
        clock.advance(back)
        assert store_time.bound_us() <= truth_us() + 1
        store_time.sample(read_us, asked_at=asked_at)
        assert store_time.bound_us() <= truth_us() + 1
        # and it is of use: as near as the answer was quick, and a little for the drift since
        assert store_time.bound_us() >= truth_us() - (there + back) * (1 + DRIFT) * 1e6 - 2


def test_bound_grows_with_the_monotonic_clock() -> None:
    """Between samples the bound goes on, a little slower than time."""
    clock = ManualClock()
    store_time = StoreTime(clock)
    store_time.sample(START_US, asked_at=clock.monotonic())

    clock.advance(1000)

    assert store_time.bound_us() == START_US + 999_500_000


def test_slow_answer_does_not_lower_a_better_bound() -> None:
    """An answer that was long on its way is no reason to know less than before."""
    clock = ManualClock()
    store_time = StoreTime(clock)
    store_time.sample(START_US, asked_at=clock.monotonic())
    asked_at = clock.monotonic()
    clock.advance(10)
    before = store_time.bound_us()

    store_time.sample(START_US, asked_at=asked_at)  # read at once, ten seconds on its way back

    assert store_time.bound_us() == before


def test_clock_set_back_is_taken_from_the_next_sample() -> None:
    """After a failover to a server whose clock is behind, the next sample holds: no job fires by the old time."""
    clock = ManualClock()
    store_time = StoreTime(clock)
    store_time.sample(START_US, asked_at=clock.monotonic())
    asked_at = clock.monotonic()
    clock.advance(0.01)

    store_time.sample(START_US - 3_000_000, asked_at=asked_at)

    assert store_time.bound_us() == START_US - 3_000_000


def test_clock_set_forward_is_taken_at_once() -> None:
    """A later time of the store is taken as it is."""
    clock = ManualClock()
    store_time = StoreTime(clock)
    store_time.sample(START_US, asked_at=clock.monotonic())

    store_time.sample(START_US + 3_000_000, asked_at=clock.monotonic())

    assert store_time.bound_us() == START_US + 3_000_000


@given(st.integers(1, 10**13))
def test_waiting_as_long_as_told_reaches_the_instant(ahead_us: int) -> None:
    """Who waits for seconds_until finds the bound at the instant: no sleeper wakes in vain again and again."""
    clock = ManualClock()
    store_time = StoreTime(clock)
    store_time.sample(START_US, asked_at=clock.monotonic())

    clock.advance(store_time.seconds_until(START_US + ahead_us))

    assert store_time.seconds_until(START_US + ahead_us) <= 3e-6
    assert store_time.seconds_until(START_US) <= 0
