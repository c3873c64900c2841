"""What SIGTERM and SIGINT mean: stop in good order; a second time: end at once."""

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from eventflow.cli.exits import ExitCode

log = logging.getLogger("eventflow.cli")

SAME_SECONDS = 0.25
"""Signals closer than this are one: ``timeout`` and ``systemctl stop`` send two, to the process and to its group."""
_LAST_WORDS_SECONDS = 1.0


class StopSignals:
    """
    Ends this process in good order if it can, and by force if it must.

    The handlers are Python's own, not the event loop's, and the end by force is a thread's: both work while
    a job blocks the loop.

    Args:
        within: Seconds from the first signal after which the process is ended by force; see also :meth:`call`.
        only_once: The second signal is somebody else's to decide.
        at_the_end: Called before the process is ended by force or at once.
    """

    def __init__(
        self, *, within: float, only_once: bool = False, at_the_end: Callable[[], object] = lambda: None
    ) -> None:
        self._within = within
        self._only_once = only_once
        self._at_the_end = at_the_end
        self._stop: Callable[[], object] = lambda: sys.exit(ExitCode.DONE)
        self._received = 0
        self._received_at = 0.0
        self._first = threading.Event()
        self._second = threading.Event()

    def install(self) -> None:
        """From now on the first signal raises SystemExit here in the main thread: nothing has begun yet."""
        threading.Thread(target=self._watch, name="eventflow stop", daemon=True).start()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def call(self, stop: Callable[[], object], *, within: float) -> None:
        """
        From now on the first signal calls *stop* in the running event loop; at once, if it has come already.

        Args:
            stop: Asks what runs now to end.
            within: Seconds it may take.
        """
        loop = asyncio.get_running_loop()
        self._within = within
        self._stop = lambda: loop.call_soon_threadsafe(self._ask, stop, within)
        if self._received:
            stop()

    def ignore(self) -> None:
        """From now on the first signal changes nothing: the process is about to end."""
        self._stop = lambda: None

    def _ask(self, stop: Callable[[], object], within: float) -> None:
        log.info("process.stopping", extra={"signal": self._name, "within_seconds": within})
        stop()

    @property
    def _name(self) -> str:
        return signal.Signals(self._received).name

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._received:
            self._received, self._received_at = number, time.monotonic()
            self._first.set()
            with suppress(RuntimeError):  # the loop has been closed: the process is about to end
                self._stop()
        elif not self._only_once and time.monotonic() - self._received_at > SAME_SECONDS:
            self._received = number
            self._second.set()

    def _watch(self) -> None:
        self._first.wait()
        if self._second.wait(self._within):
            self._end(128 + self._received, "process.ended_at_once", {"signal": self._name})
        self._end(ExitCode.FORCED, "process.ended_by_force", {"after_seconds": self._within})

    def _end(self, code: int, event: str, values: dict[str, object]) -> None:
        # The log may be what everything hangs on; then nobody hears this.
        words = threading.Thread(target=log.error, args=(event,), kwargs={"extra": values}, daemon=True)
        words.start()
        words.join(_LAST_WORDS_SECONDS)
        self._at_the_end()
        os._exit(code)
