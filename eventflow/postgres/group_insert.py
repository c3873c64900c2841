"""Concurrent inserts share a commit."""

from collections.abc import Awaitable, Callable, Sequence

import anyio

from eventflow.errors import CommitUnknownError, ValueRefusedError
from eventflow.jobs import NewJob

MOST_JOBS = 1000
"""Jobs in one shared commit; a larger single insert is not cut."""


class _Call:
    def __init__(self, jobs: Sequence[NewJob]) -> None:
        self.jobs = jobs
        self.done = False
        self.error: Exception | None = None


class GroupInsert:
    """
    While one insert is under way, the calls that arrive wait together and become the next one.

    A lone call pays nothing for it. Whoever gets the lock first writes for all who wait, and does not stop
    half-way when it is cancelled itself.

    Args:
        write: Inserts jobs, all or none, and commits.
    """

    def __init__(self, write: Callable[[Sequence[NewJob]], Awaitable[None]]) -> None:
        self._write = write
        self._lock = anyio.Lock()
        self._waiting: list[_Call] = []

    async def insert(self, jobs: Sequence[NewJob]) -> None:
        """Insert these jobs, perhaps together with others'; raises what *write* raises."""
        call = _Call(jobs)
        self._waiting.append(call)
        try:
            async with self._lock:
                if not call.done:
                    with anyio.CancelScope(shield=True):
                        await self._write_all(self._take(call))
        finally:
            if call in self._waiting:  # cancelled before anybody wrote it
                self._waiting.remove(call)
        if call.error is not None:
            raise call.error

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
