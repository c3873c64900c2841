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
SHARE_OF_WAIT = 0.25
"""It keeps itself free for this share of the time that a suspect has been waiting: so even one behind hour-long jobs
is taken at last, and most of the time goes to the others."""


class Quarantine:
    """
    Decides when a worker takes a suspect: a job that was held by several workers when they died.

    A worker that holds nothing takes one at once. If all are busy, one at a time claims nothing more until its jobs
    have ended, or its patience has.
    """

    def __init__(self, *, slots: Slots, timers: Timers, completions: Completions, clock: Clock) -> None:
        self._slots = slots
        self._timers = timers
        self._completions = completions
        self._clock = clock
        self._free_until = float("-inf")
        self._suspect: JobId | None = None

    def see(self, tick: Tick) -> None:
        """Take note of a look at the store."""
        if tick.suspect_us is None:
            self._free_until = float("-inf")
        elif not self.is_closed and (tick.my_turn or self._holds_nothing()):
            waited = (tick.now_us - tick.suspect_us) / 1_000_000
            self._free_until = self._clock.monotonic() + max(SHORTEST_SECONDS, waited * SHARE_OF_WAIT)

    @property
    def is_closed(self) -> bool:
        """Whether other jobs have to stay out."""
        return self._suspect in self._held() or self._is_waiting()

    @property
    def may_take(self) -> bool:
        """Whether it is time to claim a suspect."""
        return self._is_waiting() and self._holds_nothing()

    def took(self, claims: Sequence[ClaimedJob]) -> None:
        """The claim of a suspect was answered; nothing: there is none left."""
        if claims:
            self._suspect = claims[0].id
        else:
            self._free_until = float("-inf")

    def _is_waiting(self) -> bool:
        return self._clock.monotonic() < self._free_until

    def _holds_nothing(self) -> bool:
        return not self._held()

    def _held(self) -> set[JobId]:
        return {*self._slots.ids(), *self._timers.ids(), *self._completions.ids()}
