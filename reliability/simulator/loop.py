"""An event loop with a time of its own: nothing waits, and a seed decides who goes first."""

import asyncio
import heapq
import itertools
from asyncio.events import Handle, TimerHandle
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from math import inf
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")

TURN_SECONDS = 20e-6
"""What one turn of a thread's loop takes."""


class DeadlockError(Exception):
    """Everybody waits, and nobody for time to pass."""


class Process:
    """
    What can be frozen and killed as a whole.

    Attributes:
        name: In traces.
        is_frozen: It does nothing for a while, as after SIGSTOP; its timers go off when it goes on.
        is_killed: It never does anything again.
    """

    def __init__(self, loop: "SimulatedLoop", name: str) -> None:
        self._loop = loop
        self.name = name
        self.is_frozen = False
        self.is_killed = False
        self.threads: list[Thread] = []

    def thread(self) -> "Thread":
        """One more event loop of this process."""
        thread = Thread(self, self._loop)
        self.threads.append(thread)
        return thread

    def thaw(self) -> None:
        """It goes on."""
        self.is_frozen = False

    def kill(self) -> None:
        """End it as SIGKILL does: no ``finally`` runs."""
        self.is_killed = True
        self._loop.forget(self.threads)


class Thread:
    """
    An event loop of a process. Callbacks belong to the thread that asked for them, by their context.

    Attributes:
        ready: Callbacks to run, in order.
        is_blocked: Something in it does not give way.
        tasks: All that were started in it.
    """

    def __init__(self, process: Process, loop: "SimulatedLoop") -> None:
        self.process = process
        self.ready: deque[Handle] = deque()
        self.is_blocked = False
        self.tasks: list[asyncio.Task[Any]] = []
        self._loop = loop

    def start(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine in this thread."""
        context = copy_context()
        context.run(THREAD.set, self)
        return context.run(self._loop.create_task, coroutine)

    def post(self, callback: Callable[..., object], *arguments: object) -> None:
        """Call something in this thread, as ``call_soon_threadsafe`` does."""
        self._loop.call_soon(callback, *arguments, context=self.context())

    def later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call something in this thread after a while."""
        self._loop.call_later(seconds, callback, context=self.context())

    def block(self, seconds: float) -> None:
        """Run nothing for a while."""
        self.is_blocked = True
        self._loop.main.later(seconds, self._unblock)

    def _unblock(self) -> None:
        self.is_blocked = False

    def context(self) -> Context:
        """A context for callbacks in this thread."""
        context = Context()
        context.run(THREAD.set, self)
        return context

    @property
    def may_run(self) -> bool:
        """Whether it goes on."""
        return not self.is_blocked and not self.process.is_frozen


THREAD: ContextVar[Thread] = ContextVar("thread")


class SimulatedLoop(asyncio.BaseEventLoop):
    """
    Runs the threads of many processes, one turn of one of them at a time, in virtual time.

    Within a thread callbacks run in order, as in any event loop. Between threads the random source chooses.

    Args:
        rng: Chooses.
    """

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self._rng = rng
        self._now = 0.0
        self._timers: list[tuple[float, int, TimerHandle]] = []
        self._sequence = itertools.count()
        self._threads: dict[Thread, None] = {}  # those with something to do; ordered
        self.main = Process(self, "simulator").thread()
        self.set_task_factory(_create_task)  # pyright: ignore[reportArgumentType] - only coroutines are started here

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run until *main* has ended."""
        return self.run_until_complete(self.main.start(main))

    def forget(self, threads: list[Thread]) -> None:
        """Run nothing more in these threads."""
        for thread in threads:
            self._threads.pop(thread, None)

    def make_runnable(self, thread: Thread) -> None:
        """Run what is ready in this thread, if anything is."""
        if thread.ready and not thread.process.is_killed:
            self._threads[thread] = None

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Handle:
        handle = Handle(callback, args, self, context)
        self._make_ready(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> TimerHandle:
        timer = TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._sequence), timer))
        return timer

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def _make_ready(self, handle: Handle) -> None:
        thread: Thread = handle._context.get(THREAD) or self.main
        thread.ready.append(handle)
        self.make_runnable(thread)

    def _run_once(self) -> None:
        timers = self._timers
        while timers and (timers[0][0] <= self._now or timers[0][2]._cancelled):
            timer = heapq.heappop(timers)[2]
            if not timer._cancelled:
                self._make_ready(timer)
        runnable = [thread for thread in self._threads if thread.may_run]
        if not runnable:
            if not timers or timers[0][0] == inf:
                raise DeadlockError("nothing can happen any more")
            self._now = timers[0][0]
            return
        thread = runnable[0] if len(runnable) == 1 else runnable[int(self._rng.random() * len(runnable))]
        ready = thread.ready
        for _ in range(len(ready)):
            if not thread.may_run or thread.process.is_killed:
                break  # a callback has stopped it
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()
        if not ready:
            self._threads.pop(thread, None)
        self._now += TURN_SECONDS

    def _timer_handle_cancelled(self, handle: TimerHandle) -> None:
        pass  # it is dropped when its time comes

    def _write_to_self(self) -> None:
        pass

    def _process_events(self, event_list: list[Any]) -> None:
        pass


def _create_task(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T], *, context: Context | None = None, **_: Any
) -> asyncio.Task[T]:
    task = asyncio.Task(coroutine, loop=loop, context=context)
    thread = (context or copy_context()).get(THREAD)
    if thread is not None:
        thread.tasks.append(task)
    return task
