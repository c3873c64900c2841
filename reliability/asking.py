"""What producers do, simulated or real."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

from eventflow import App, CommitUnknownError, DatabaseUnavailableError, DuplicateOperationError, JobId
from eventflow.errors import OptimisticConcurrencyError
from reliability.scenario import Ask
from reliability.workload import AccountId, Deposit, News, Work

AGAIN_SECONDS = 0.1


class Producer:
    """
    Makes calls, and says what came of them.

    Args:
        app: The application.
        sleep: Waits so many seconds.
        job_ids: By number the jobs that were scheduled, by whomever.
    """

    def __init__(self, app: App, sleep: Callable[[float], Awaitable[None]], job_ids: dict[int, JobId]) -> None:
        self._app = app
        self._sleep = sleep
        self._job_ids = job_ids

    async def make(self, ask: Ask) -> tuple[str, JobId | None]:
        """
        One call.

        Returns:
            ``done``, ``refused`` or ``unknown``; and the job, if there is one and it is known.

        Raises:
            EventFlowError: that no fault explains.
        """
        job_id: JobId | None = None
        try:
            job_id = await self._call(ask)
        except CommitUnknownError:
            return "unknown", None
        except DatabaseUnavailableError:
            return "refused", None
        if job_id is not None:
            self._job_ids[ask.number] = job_id
        return "done", job_id

    async def _call(self, ask: Ask) -> JobId | None:
        delay = timedelta(seconds=ask.delay)
        if ask.what in ("cancel", "move"):
            await self._change(ask, delay)
            return None
        if ask.what == "publish":
            await self._publish(deposit_of(ask))
            return None
        if ask.what == "deposit":
            return await self._app.commands.schedule(deposit_of(ask), delay=delay)
        return await self._app.jobs.schedule(job_of(ask), delay=delay)

    async def _change(self, ask: Ask, delay: timedelta) -> None:
        job_id = self._job_ids.get(ask.number)
        if job_id is None:
            return
        if ask.what == "cancel":
            await self._app.jobs.cancel(job_id)
        else:
            await self._app.jobs.reschedule(job_id, delay=delay)

    async def _publish(self, command: Deposit) -> None:
        """Publish until it is done; that is safe."""
        while True:
            try:
                await self._app.commands.publish(command)
            except DuplicateOperationError:
                return
            except (DatabaseUnavailableError, CommitUnknownError, OptimisticConcurrencyError):
                await self._sleep(AGAIN_SECONDS)
            else:
                return


def account_id(number: int) -> AccountId:
    """Of an account with this number."""
    return AccountId.of(f"00000000-0000-7000-8000-{number:012x}")


def deposit_of(ask: Ask) -> Deposit:
    """The command of a call."""
    return Deposit(aggregate_id=account_id(ask.account), number=ask.number, nap=ask.nap, block=ask.block)


def job_of(ask: Ask) -> Work | News:
    """The job of a call."""
    if ask.what == "news":
        return News(number=ask.number)
    return Work(
        number=ask.number,
        nap=ask.nap,
        block=ask.block,
        failures=ask.failures,
        children=ask.children,
        is_deadly=ask.is_deadly,
    )
