"""The store's time, known without asking: never ahead of the truth."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from eventflow import ManualClock
from eventflow.jobs.worker.store_time import DRIFT, StoreTime

START_US = 1_900_000_000_000_000
HOUR = 3600.0


class Question(msgspec.Struct, frozen=True):
    """The store is asked, reads its clock, and answers; in seconds from the start and from the step before."""

    pause: float
    there: float
    back: float


class Step(msgspec.Struct, frozen=True):
    """The store's clock is set: back or forward by so many seconds."""

    at: float
    seconds: float


SECONDS = st.integers(0, 20).map(lambda quarters: quarters / 4)
QUESTIONS = st.lists(st.builds(Question, pause=SECONDS, there=SECONDS, back=SECONDS), min_size=1, max_size=8)
STEPS = st.lists(
    st.builds(
        Step, at=st.integers(0, 40).map(float), seconds=st.integers(-10, 10).map(float) | st.sampled_from([-HOUR, HOUR])
    ),
    max_size=3,
)
DRIFTS = st.floats(-DRIFT * 0.99, DRIFT * 0.99)


class Store:
    """A store whose clock drifts against ours, and is set now and then."""

    def __init__(self, clock: ManualClock, drift: float, steps: list[Step]) -> None:
        self._clock = clock
        self._drift = drift
        self._steps = steps

    def now_us(self) -> int:
        """What its clock shows; rounded down, as Postgres does."""
        elapsed = self._clock.monotonic()
        stepped = sum(step.seconds for step in self._steps if step.at <= elapsed)
        return START_US + int((elapsed * (1 + self._drift) + stepped) * 1e6)

    def set_back_at(self) -> float:
        """When its clock was set back the last time."""
        elapsed = self._clock.monotonic()
        return max((step.at for step in self._steps if step.at <= elapsed and step.seconds < 0), default=0.0)


@given(QUESTIONS, DRIFTS)
def test_bound_is_never_ahead_of_the_store(questions: list[Question], drift: float) -> None:
    """Whatever the drift of the clocks and the delays on the way, the bound is at most the store's true time."""
    clock = ManualClock()
    store, store_time = Store(clock, drift, []), StoreTime(clock)
    for question in questions:
        clock.advance(question.pause)
        assert store_time.bound_us() <= store.now_us() + 1
        asked_at = clock.monotonic()
        clock.advance(question.there)
        read_us = store.now_us()
        clock.advance(question.back)
        assert store_time.bound_us() <= store.now_us() + 1
        store_time.sample(read_us, asked_at=asked_at)
        assert store_time.bound_us() <= store.now_us() + 1
        # and it is of use: as near as the answer was quick
        assert store_time.bound_us() >= store.now_us() - question.back * (1 + DRIFT) * 1e6 - 2


@given(QUESTIONS, QUESTIONS, STEPS, DRIFTS)
def test_bound_is_not_ahead_once_an_answer_has_come_since_the_clock_was_set_back(
    claims: list[Question], looks: list[Question], steps: list[Step], drift: float
) -> None:
    """Two ask by turns or at once, answers take any time, and the clock is set: one answer read since is enough."""
    clock = ManualClock()
    store, store_time = Store(clock, drift, steps), StoreTime(clock)
    read_at = -1.0  # the latest reading of the clock that has arrived
    readings: dict[int, tuple[float, int]] = {}
    for at, what, (number, asked_at) in sorted([*_moments(claims, 0), *_moments(looks, len(claims))]):
        clock.advance(at - clock.monotonic())
        if what == "a read":
            readings[number] = (clock.monotonic(), store.now_us())
        else:
            read_at = max(read_at, readings[number][0])
            store_time.sample(readings[number][1], asked_at=asked_at)
        if read_at >= store.set_back_at():
            assert store_time.bound_us() <= store.now_us() + 1


def _moments(questions: list[Question], first: int) -> list[tuple[float, str, tuple[int, float]]]:
    """When the store reads its clock for each question of one asker, and when it has the answer."""
    moments: list[tuple[float, str, tuple[int, float]]] = []
    now = 0.0
    for number, question in enumerate(questions, first):
        asked_at = now + question.pause
        read_at = asked_at + question.there
        now = read_at + question.back
        moments += [(read_at, "a read", (number, asked_at)), (now, "b answer", (number, asked_at))]
    return moments


def test_bound_grows_with_the_monotonic_clock() -> None:
    """Between samples the bound goes on, a little slower than time."""
    clock = ManualClock()
    store_time = StoreTime(clock)
    store_time.sample(START_US, asked_at=clock.monotonic())

    clock.advance(1000)

    assert store_time.bound_us() == START_US + 999_500_000


def test_slow_answer_may_hide_that_the_clock_was_set_back() -> None:
    """After a failover the first answer took as long as connecting again did: it holds, though it shows little."""
    clock = ManualClock()
    store_time = StoreTime(clock)
    store_time.sample(START_US, asked_at=clock.monotonic())
    asked_at = clock.monotonic()
    clock.advance(10)

    store_time.sample(START_US + 2_000_000, asked_at=asked_at)  # the new server is up to eight seconds behind

    assert store_time.bound_us() == START_US + 2_000_000


def test_answers_that_overtake_each_other_do_not_raise_the_bound() -> None:
    """Of two that were under way at once, either may have been read first: the lower one holds until the next."""
    clock = ManualClock()
    store_time = StoreTime(clock)
    asked_at = clock.monotonic()
    store_time.sample(START_US, asked_at=asked_at)  # by a clock that was set back after it was read for the other
    clock.advance(1)

    store_time.sample(START_US + 60_000_000, asked_at=asked_at - 1)
    assert store_time.bound_us() == START_US + 999_500

    store_time.sample(START_US + 1_000_000, asked_at=clock.monotonic())
    assert store_time.bound_us() == START_US + 1_000_000


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
