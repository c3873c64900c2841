"""Jobs that may kill their process run alone, so that they take no others with them, and the blame is theirs."""

from collections.abc import Sequence

from eventflow.clock import Clock
from eventflow.ids import JobId
from eventflow.jobs.records import ClaimedJob, Tick
from eventflow.jobs.worker.completion import Completions
from eventflow.jobs.worker.slots import Slots
from eventflow.jobs.worker.timers import Timers

SHORTEST_SECONDS = 1.0
"""A worker keeps itself free for suspects at least so long."""
SHARE = 0.25
"""It keeps itself free for this share of the time that a suspect has been waiting, so that even one behind hour-long
jobs is taken at last; and for no more than this share of its own time: most goes to the others. Turns in the
store's tick grow by the same share."""


class Quarantine:
    """
    Decides when a worker takes a suspect: a job that was held by several workers when they died.

    A worker with nothing else to do takes one at once. If all are busy, one at a time claims nothing more until its
    jobs have ended, or its turn or its patience has.
    """

    def __init__(self, *, slots: Slots, timers: Timers, completions: Completions, clock: Clock) -> None:
        self._slots = slots
        self._timers = timers
        self._completions = completions
        self._clock = clock
        self._suspect: JobId | None = None
        self._closed_at = float("-inf")
        self._free_until = float("-inf")
        self._rest_until = float("-inf")

    def see(self, tick: Tick) -> None:
        """Take note of a look at the store."""
        now = self._clock.monotonic()
        is_idle = self._holds_nothing() and not _shows_others(tick)
        if self._holds_suspect():
            self._rest_until = max(self._rest_until, self._rest_after(now))
            return
        self._suspect = None
        if tick.suspect_us is None or not (is_idle or tick.my_turn):
            self.give_up()
        elif self.is_closed:
            return
        elif is_idle:
            self._close(SHORTEST_SECONDS)
        elif now >= self._rest_until:
            waited = (tick.now_us - tick.suspect_us) / 1_000_000
            self._close(max(SHORTEST_SECONDS, waited * SHARE))

    @property
    def is_closed(self) -> bool:
        """Whether other jobs have to stay out."""
        return self._holds_suspect() or self._is_waiting()

    @property
    def may_take(self) -> bool:
        """Whether it is time to claim a suspect."""
        return self._is_waiting() and self._holds_nothing()

    @property
    def seconds_left(self) -> float | None:
        """How long it waits yet; ``None``: it does not."""
        return self._free_until - self._clock.monotonic() if self._is_waiting() else None

    def took(self, claims: Sequence[ClaimedJob]) -> None:
        """The claim of a suspect was answered; nothing: there is none left."""
        if claims:
            self._suspect = claims[0].id
        else:
            self.give_up()

    def give_up(self) -> None:
        """Let other jobs in, as soon as no suspect runs."""
        if self._is_waiting():
            self._free_until = float("-inf")
            self._rest_until = self._rest_after(self._clock.monotonic())

    def _close(self, seconds: float) -> None:
        self._closed_at = self._clock.monotonic()
        self._free_until = self._closed_at + seconds
        self._rest_until = self._rest_after(self._free_until)

    def _rest_after(self, opened_at: float) -> float:
        return self._closed_at + (opened_at - self._closed_at) / SHARE

    def _is_waiting(self) -> bool:
        return self._clock.monotonic() < self._free_until

    def _holds_suspect(self) -> bool:
        return self._suspect is not None and self._suspect in self._held()

    def _holds_nothing(self) -> bool:
        return not self._held()

    def _held(self) -> set[JobId]:
        return {*self._slots.ids(), *self._timers.ids(), *self._completions.ids()}


def _shows_others(tick: Tick) -> bool:
    return tick.parked or (tick.next_us is not None and tick.next_us <= tick.now_us)
