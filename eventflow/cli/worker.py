"""``eventflow worker``: one process, from the first signal handler to the exit code."""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Annotated

import anyio
from cyclopts import Group, Parameter
from cyclopts.validators import Number

from eventflow.application import App, EventFlow
from eventflow.cli.address import DATABASE, LISTEN_ADDRESS
from eventflow.cli.exits import ExitCode, UsageError
from eventflow.cli.loading import load_flow
from eventflow.cli.logs import LogLevel
from eventflow.cli.signals import StopSignals
from eventflow.clock import SystemClock
from eventflow.errors import DatabaseUnavailableError, WorkerError
from eventflow.jobs import WorkerSettings

log = logging.getLogger("eventflow.cli")

DEFAULTS = WorkerSettings()
LONGEST_PAUSE_SECONDS = 1.0
"""Between two attempts to reach a database that is away: it is found again within this and one attempt."""

_STOPPING = Group("Stopping", sort_key=20)
_TIMING = Group("Timing (seconds)", sort_key=30)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """The options of a worker, besides its database."""

    app_dir: Annotated[Path, Parameter(metavar="DIR", help="Where MODULE is looked for first.")] = Path()
    queues: Annotated[
        tuple[str, ...],
        Parameter(
            metavar="NAME,…", negative="", show_default=False,
            help="The queues to serve; may be repeated. Default: all.",
        ),
    ] = ()  # fmt: skip
    concurrency: Annotated[
        int, Parameter(metavar="N", validator=Number(gte=1), help="Jobs that each process runs at once.")
    ] = DEFAULTS.concurrency
    processes: Annotated[
        int,
        Parameter(
            metavar="N", validator=Number(gte=1),
            help="With more than one, a supervisor starts so many and replaces those that die.",
        ),
    ] = 1  # fmt: skip
    log_level: Annotated[LogLevel, Parameter(help="Least important lines to log, on standard error.")] = "info"
    listen_dsn_file: Annotated[
        Path | None,
        Parameter(
            group=DATABASE,
            help="File with a direct address for LISTEN, if the other leads through a pooler in transaction mode; "
            f"without it, {LISTEN_ADDRESS} may hold one.",
        ),
    ] = None
    grace_period: Annotated[
        float,
        Parameter(
            group=_STOPPING, metavar="SECONDS", validator=Number(gte=0),
            help="How long running jobs may go on after SIGTERM. Then they are cancelled.",
        ),
    ] = DEFAULTS.grace_period  # fmt: skip
    clean_up_period: Annotated[
        float,
        Parameter(
            group=_STOPPING, metavar="SECONDS", validator=Number(gt=0),
            help="How long cancelled jobs and the application's lifespan may take after that. Then the process is "
            "ended by force, and other workers rescue its jobs.",
        ),
    ] = 10.0  # fmt: skip
    heartbeat_interval: Annotated[
        float, Parameter(group=_TIMING, metavar="SECONDS", help="Between two beats of the lease.")
    ] = DEFAULTS.heartbeat_interval
    fence_after: Annotated[
        float,
        Parameter(group=_TIMING, metavar="SECONDS", help="Without a beat for so long, it cancels its jobs itself."),
    ] = DEFAULTS.fence_after
    lease_duration: Annotated[
        float,
        Parameter(group=_TIMING, metavar="SECONDS", help="Without a beat for so long, others take its jobs."),
    ] = DEFAULTS.lease_duration
    tick_interval: Annotated[
        float,
        Parameter(group=_TIMING, metavar="SECONDS", help="Between two looks for what no notification told."),
    ] = DEFAULTS.tick_interval
    supervised_by: Annotated[int | None, Parameter(show=False)] = None

    def settings(self) -> WorkerSettings:
        """
        The worker's settings.

        Raises:
            UsageError: they do not fit together.
        """
        try:
            return WorkerSettings(
                concurrency=self.concurrency,
                queues=tuple(name for names in self.queues for name in names.split(",") if name) or None,
                grace_period=self.grace_period,
                heartbeat_interval=self.heartbeat_interval,
                lease_duration=self.lease_duration,
                fence_after=self.fence_after,
                tick_interval=self.tick_interval,
            )
        except WorkerError as exc:
            raise UsageError(str(exc)) from exc

    def arguments(self) -> Iterator[str]:
        """The command line of one child of a supervisor; its addresses come in the environment."""
        yield f"--app-dir={self.app_dir}"
        yield from (f"--queues={names}" for names in self.queues)
        yield f"--concurrency={self.concurrency}"
        yield f"--log-level={self.log_level}"
        yield f"--grace-period={self.grace_period}"
        yield f"--clean-up-period={self.clean_up_period}"
        yield f"--heartbeat-interval={self.heartbeat_interval}"
        yield f"--fence-after={self.fence_after}"
        yield f"--lease-duration={self.lease_duration}"
        yield f"--tick-interval={self.tick_interval}"


class WorkerProcess:
    """
    Runs one worker in this process until a signal comes.

    Args:
        target: ``MODULE:FLOW``.
        dsn: The database.
        listen_dsn: A direct address of it, if *dsn* leads through a pooler.
        schema: Where its tables are.
        options: How the worker behaves.
    """

    def __init__(self, target: str, dsn: str, *, listen_dsn: str | None, schema: str, options: WorkerOptions) -> None:
        self._target = target
        self._dsn = dsn
        self._listen_dsn = listen_dsn
        self._schema = schema
        self._options = options
        self._settings = options.settings()
        self._signals = StopSignals(within=options.clean_up_period, only_once=options.supervised_by is not None)
        self._clock = SystemClock()
        self._rng = Random()

    def run(self) -> ExitCode:
        """
        Work until told to stop.

        Raises:
            EventFlowError: it cannot begin, or cannot go on.
        """
        self._signals.install()
        if self._options.supervised_by is not None:
            end_with(self._options.supervised_by)
        flow = load_flow(self._target, self._options.app_dir)
        try:
            anyio.run(self._work, flow, backend_options={"use_uvloop": find_spec("uvloop") is not None})
        finally:
            self._signals.ignore()
        return ExitCode.DONE

    async def _work(self, flow: EventFlow) -> None:
        options = self._options
        with anyio.CancelScope() as scope:
            self._signals.call(scope.cancel, within=options.clean_up_period)
            async with AsyncExitStack() as stack:
                app = await self._open(flow, stack)
                worker = app.create_worker(self._settings)
                self._signals.call(worker.stop, within=options.grace_period + options.clean_up_period)
                await worker.run()

    async def _open(self, flow: EventFlow, stack: AsyncExitStack) -> App:
        """Open the application as soon as the database is there."""
        failures = 0
        while True:
            try:
                app = await stack.enter_async_context(
                    flow.open(self._dsn, schema=self._schema, listen_dsn=self._listen_dsn)
                )
            except DatabaseUnavailableError as exc:
                if failures == 0:
                    log.warning("database.away", extra={"error": str(exc)})
                failures += 1
            else:
                if failures:
                    log.info("database.back", extra={"failures": failures})
                return app
            longest = min(LONGEST_PAUSE_SECONDS, 0.1 * 2.0 ** min(failures, 10))
            await self._clock.sleep(longest * self._rng.uniform(0.5, 1.0))


def end_with(supervisor: int) -> None:
    """
    Stop in good order when the supervisor is gone, even if it was killed; on Linux only.

    Raises:
        SystemExit: it is gone already.
    """
    if sys.platform == "linux":
        import ctypes

        death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(death_signal, int(signal.SIGTERM))
    if os.getppid() != supervisor:
        sys.exit(ExitCode.DONE)
