"""Clocks of simulated machines: they differ, drift and are set."""

from datetime import UTC, datetime, timedelta

import anyio

from reliability.simulator.loop import SimulatedLoop

START = datetime(2030, 1, 1, tzinfo=UTC)


class SimulatedClock:
    """
    The :class:`~eventflow.clock.Clock` of one machine.

    Args:
        loop: Its time is the true one.
        rate: How much faster its monotonic clock runs.
        ahead: Seconds by which its wall clock is ahead.
    """

    def __init__(self, loop: SimulatedLoop, *, rate: float = 1.0, ahead: float = 0.0) -> None:
        self._loop = loop
        self._rate = rate
        self.ahead = ahead

    def now(self) -> datetime:
        return START + timedelta(seconds=self._loop.time() + self.ahead)

    def monotonic(self) -> float:
        return self._loop.time() * self._rate

    def deadline(self, seconds: float | None) -> anyio.CancelScope:
        return anyio.move_on_after(None if seconds is None else seconds / self._rate)

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(max(0.0, seconds) / self._rate)  # noqa: TID251 - this is the clock

    async def sleep_exactly(self, seconds: float) -> None:
        await self.sleep(seconds)
