"""Workers and producers: processes that are sent signals, and asked things."""

import signal
import time
from subprocess import Popen

import anyio
import msgspec

from reliability.rig.proxy import Proxy
from reliability.scenario import Ask


class RealProcess:
    """
    A worker or producer of its own.

    Attributes:
        name: In histories.
        proxy: Between it and the server.
        stop_asked_at: Monotonic seconds.
        asked: Numbers of the calls that it was to make.
        started_at: Monotonic seconds.
        dies_at: The point of the code at which it ends by itself; ``""``: there is none.
    """

    def __init__(self, name: str, proxy: Proxy, process: "Popen[bytes]") -> None:
        self.name = name
        self.proxy = proxy
        self.stop_asked_at: float | None = None
        self.asked: set[int] = set()
        self.started_at = time.monotonic()
        self.dies_at = ""
        self._process = process

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def runs(self) -> bool:
        """It has not ended."""
        return self._process.poll() is None

    @property
    def is_producer(self) -> bool:
        """It makes calls."""
        return self.name.startswith("producer")

    def send(self, number: signal.Signals) -> None:
        """A signal, if it still runs."""
        if self.runs:
            self._process.send_signal(number)

    def stop(self) -> None:
        """Ask it to end in good order: a worker by SIGTERM, a producer by the end of its input."""
        self.stop_asked_at = time.monotonic()
        if self.is_producer and self._process.stdin is not None:
            self._process.stdin.close()
        else:
            self.send(signal.SIGTERM)

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()

    def ask(self, ask: Ask) -> None:
        """Have a producer make a call."""
        if self.runs and self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.write(msgspec.json.encode(ask) + b"\n")
            self._process.stdin.flush()
            if ask.what not in ("cancel", "move"):
                self.asked.add(ask.number)

    async def ended(self) -> int:
        """Its exit code, as soon as there is one."""
        while self._process.poll() is None:
            await anyio.sleep(0.01)
        return self._process.returncode
