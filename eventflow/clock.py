"""Time as a collaborator: the system's, or one that tests advance."""

import heapq
import itertools
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

import anyio
import anyio.lowlevel

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_microseconds(value: datetime | timedelta) -> int:
    """
    Whole microseconds since the epoch of an aware instant, or in a duration.

    >>> to_microseconds(datetime(1970, 1, 2, tzinfo=UTC))
    86400000000
    """
    span = value if isinstance(value, timedelta) else value - EPOCH
    return span // _MICROSECOND


def to_datetime(microseconds: int) -> datetime:
    """
    The aware instant at so many microseconds since the epoch.

    Raises:
        OverflowError: the instant lies outside the years that ``datetime`` can name.
    """
    return EPOCH + timedelta(microseconds=microseconds)


class Clock(Protocol):
    """Wall time for people, monotonic seconds for waiting, and the waiting itself."""

    def now(self) -> datetime:
        """Wall time, aware, UTC. Never decides when a stored job is due: the database's clock does."""
        ...

    def monotonic(self) -> float:
        """Seconds that only grow, from an arbitrary start."""
        ...

    def deadline(self, seconds: float | None) -> anyio.CancelScope:
        """A cancel scope that is cancelled after *seconds* (``None``: never); enter it at once."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait so many seconds."""
        ...

    async def sleep_exactly(self, seconds: float) -> None:
        """The same to the microsecond, for about a millisecond: it keeps the processor busy."""
        ...


class SystemClock:
    """The clock of the machine and of the running event loop."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    def deadline(self, seconds: float | None) -> anyio.CancelScope:
        return anyio.move_on_after(seconds)

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(max(0.0, seconds))

    async def sleep_exactly(self, seconds: float) -> None:
        until = self.monotonic() + seconds
        while self.monotonic() < until:
            await anyio.lowlevel.checkpoint()


class ManualClock:
    """
    A clock that stands still until a test advances it.

    >>> clock = ManualClock(datetime(2030, 1, 1, tzinfo=UTC))
    >>> clock.advance(timedelta(days=30))
    >>> clock.now().isoformat()
    '2030-01-31T00:00:00+00:00'
    """

    def __init__(self, start: datetime = datetime(2030, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed = timedelta(0)
        self._deadlines: list[tuple[timedelta, int, anyio.CancelScope]] = []
        self._sequence = itertools.count()

    def now(self) -> datetime:
        return self._start + self._elapsed

    def monotonic(self) -> float:
        return self._elapsed.total_seconds()

    def deadline(self, seconds: float | None) -> anyio.CancelScope:
        scope = anyio.CancelScope()
        if seconds is None:
            return scope
        if seconds <= 0:
            scope.cancel()
            return scope
        # Rounded up: a sleeper that wakes must find its whole time gone, or it would spin at a standing clock.
        until = self._elapsed + timedelta(microseconds=-(-seconds * 1_000_000 // 1))
        heapq.heappush(self._deadlines, (until, next(self._sequence), scope))
        return scope

    async def sleep(self, seconds: float) -> None:
        with self.deadline(seconds):
            await anyio.sleep_forever()

    async def sleep_exactly(self, seconds: float) -> None:
        await self.sleep(seconds)

    def advance(self, by: timedelta | float) -> None:
        """Move the time forward by a duration or so many seconds; whoever waits for less wakes up."""
        self._elapsed += by if isinstance(by, timedelta) else timedelta(seconds=by)
        while self._deadlines and self._deadlines[0][0] <= self._elapsed:
            heapq.heappop(self._deadlines)[2].cancel()


class Wakeup:
    """
    A flag that one task waits for and others raise; waiting lowers it.

    Raising it before anybody waits is not lost, raising it twice is once.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._raised = False
        self._event: anyio.Event | None = None

    def set(self) -> None:
        """Raise the flag."""
        self._raised = True
        if self._event is not None:
            self._event.set()

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait for the flag, at most *seconds*; tell whether it was raised."""
        if not self._raised and (seconds is None or seconds > 0):
            self._event = anyio.Event()
            try:
                with self._clock.deadline(seconds):
                    await self._event.wait()
            finally:
                self._event = None
        raised, self._raised = self._raised, False
        return raised
