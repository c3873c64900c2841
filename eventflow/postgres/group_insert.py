"""Concurrent inserts share a commit."""

from collections.abc import Awaitable, Callable, Sequence

import anyio

from eventflow.errors import CommitUnknownError, ValueRefusedError
from eventflow.jobs import NewJob

MOST_JOBS = 1000
"""Jobs in one shared commit; a larger single insert is not cut."""
LAST_SECONDS = 0.2
"""How much longer an insert may take that nobody waits for any more."""


class _Call:
    def __init__(self, jobs: Sequence[NewJob]) -> None:
        self.jobs = jobs
        self.done = False
        self.given_up = False
        self.error: Exception | None = None


class GroupInsert:
    """
    While one insert is under way, the calls that arrive wait together and become the next one.

    A lone call pays nothing for it. Whoever gets the lock first writes for all who wait, and does not stop
    half-way when it is cancelled itself. An insert that nobody waits for any more has a moment left.

    Args:
        write: Inserts jobs, all or none, and commits.
    """

    def __init__(self, write: Callable[[Sequence[NewJob]], Awaitable[None]]) -> None:
        self._write = write
        self._lock = anyio.Lock()
        self._waiting: list[_Call] = []
        self._writing: list[_Call] = []
        self._scope = anyio.CancelScope()

    async def insert(self, jobs: Sequence[NewJob]) -> None:
        """Insert these jobs, perhaps together with others'; raises what *write* raises."""
        call = _Call(jobs)
        self._waiting.append(call)
        try:
            async with self._lock:
                if not call.done:
                    await self._write_taken(self._take(call))
        except BaseException:
            call.given_up = True
            self._hurry()
            raise
        finally:
            if call in self._waiting:  # cancelled before anybody wrote it
                self._waiting.remove(call)
        if call.error is not None:
            raise call.error

    async def _write_taken(self, calls: list[_Call]) -> None:
        if len(calls) == 1:
            await self._write_all(calls)
            return
        self._writing, self._scope = calls, anyio.CancelScope(shield=True)
        written = anyio.Event()

        async def write() -> None:
            with self._scope:
                await self._write_all(calls)
            written.set()

        async with anyio.create_task_group() as group:
            group.start_soon(write)  # a task of its own: no cancellation of the first caller reaches it
            try:
                await written.wait()
            except BaseException:
                calls[0].given_up = True
                self._hurry()
                raise

    def _hurry(self) -> None:
        if all(call.given_up for call in self._writing):
            self._scope.deadline = anyio.current_time() + LAST_SECONDS

    def _take(self, first: _Call) -> list[_Call]:
        self._waiting.remove(first)
        taken, size = [first], len(first.jobs)
        while self._waiting and size + len(self._waiting[0].jobs) <= MOST_JOBS:
            taken.append(self._waiting.pop(0))
            size += len(taken[-1].jobs)
        return taken

    async def _write_all(self, calls: list[_Call]) -> None:
        try:
            await self._write([job for call in calls for job in call.jobs])
        except ValueRefusedError as exc:
            if len(calls) == 1:
                self._finish(calls, exc)
                return
            for call in calls:  # one of them is refused: the others must not suffer
                await self._write_all([call])
        except Exception as exc:  # noqa: BLE001 - each caller raises it
            self._finish(calls, exc)
        else:
            self._finish(calls, None)

    def _finish(self, calls: list[_Call], error: Exception | None) -> None:
        for call in calls:
            call.done, call.error = True, error
            if isinstance(error, CommitUnknownError):  # each caller asked about jobs of his own
                call.error = CommitUnknownError([job.id for job in call.jobs])
                call.error.__cause__ = error
