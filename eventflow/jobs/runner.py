"""Runs one claimed job and says how its claim ends."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any, TypeAlias

import anyio
import msgspec

from eventflow.clock import Clock, to_datetime, to_microseconds
from eventflow.errors import ClaimLostError, DeadlinePassedError, JobTimeoutError
from eventflow.eventstore import Changes
from eventflow.invocation import Invoker
from eventflow.jobs.definitions import JobDefinitions
from eventflow.jobs.error_text import describe_error, is_unwieldy, storable
from eventflow.jobs.headers import Headers
from eventflow.jobs.job import Job, JobContext, JobOptions
from eventflow.jobs.publish_command import PublishCommandJob
from eventflow.jobs.records import ClaimedJob, NewJob, Outcome, Settlement
from eventflow.jobs.unit_of_work import UnitsOfWork, Write, nothing_of
from eventflow.retry import OnError
from eventflow.scheduling import Due
from eventflow.serialization import text_of
from eventflow.services import Services

log = logging.getLogger("eventflow.jobs")

EndClaim: TypeAlias = Callable[[Settlement, Changes, Any], Awaitable[None]]
"""Ends a claim in success, and writes what the job changed with it; in a connection's transaction, if there is one."""


class JobRunner:
    """
    Decodes a job, runs it within its timeout, and applies its retry policy.

    Args:
        definitions: The jobs that can be decoded.
        invoker: Calls them.
        services: Where jobs get their services from.
        units: Begins what an attempt writes.
        clock: Measures the timeout.
        rng: Source of the jitter of retries.
    """

    def __init__(
        self,
        definitions: JobDefinitions,
        *,
        invoker: Invoker,
        services: Services,
        units: UnitsOfWork,
        clock: Clock,
        rng: Random,
    ) -> None:
        self._definitions = definitions
        self._invoker = invoker
        self._services = services
        self._units = units
        self._clock = clock
        self._rng = rng

    async def run(
        self,
        claim: ClaimedJob,
        *,
        started_us: int,
        end: EndClaim | None = None,
        is_cancelled: Callable[[], bool] | None = None,
        admitted: Callable[[], Awaitable[None]] | None = None,
    ) -> Settlement:
        """
        One attempt. Never raises what the job raises; only cancellation of the caller passes through.

        Args:
            claim: The job.
            started_us: Now, by the store's clock.
            end: Ends the claim in success, with what the job changes; without it only the changes are written.
            is_cancelled: Tells whether it is the caller who is being cancelled, and not the handler that cancelled
                itself; by default any cancellation of the task is the caller's.
            admitted: Waits until the job's handler may run; by default it may.
        """
        try:
            job = self._definitions.decode(claim.name, claim.version, claim.payload)
            due_at = to_datetime(claim.due_us)
            headers = Headers.read(claim)
        except BaseException as exc:  # noqa: BLE001 - any client can write a row, and a type's own check may raise anything
            log.error(  # noqa: TRY400 - the reason says it all
                "job.undecodable", extra={"job_id": claim.id, "job": claim.name, "error": storable(text_of(exc))}
            )
            return dead(claim, "undecodable", exc, started_us)
        options = self._definitions.options_of(job)
        success = Settlement(
            claim=claim, outcome=Outcome.SUCCEEDED, started_us=started_us, retention_days=options.retention_days
        )
        timeout = _timeout(claim, options)
        loads_first = isinstance(job, PublishCommandJob) and timeout is None  # a limit is for what has a slot
        unit = self._units.of_job(
            headers.cause_of(claim),
            claim.id,
            None if end is None else _writer(end, success),
            deadline=headers.deadline,
            admitted=admitted if loads_first else None,
        )
        try:
            if admitted is not None and not loads_first:
                await admitted()
            async with self._services.scope() as services:
                context = JobContext(
                    job_id=claim.id, attempt=claim.attempt, due_at=due_at, services=services, unit=unit
                )
                if timeout is None:
                    await self._execute(job, context)
                else:
                    with self._clock.deadline(timeout) as deadline:
                        await self._execute(job, context)
                    if deadline.cancelled_caught:
                        raise JobTimeoutError(timeout)
        except BaseException as exc:
            if not unit.is_committed:
                if isinstance(exc, anyio.get_cancelled_exc_class()) and (is_cancelled or _is_cancelled)():
                    raise
                return self._failed(claim, options, exc, started_us)
            log.warning("job.failed_after_commit", extra={"job_id": claim.id, "job": claim.name}, exc_info=exc)
        finally:
            await unit.close()
        if unit.is_committed:
            return msgspec.structs.replace(success, is_written=True)
        return msgspec.structs.replace(success, follow_ups=tuple(unit.jobs)) if unit.jobs else success

    async def _execute(self, job: Job, context: JobContext) -> None:
        await self._invoker.call(job.execute, context)
        if context.unit.wants_commit:
            await context.unit.commit(nothing_of(context.job_id))

    def _failed(self, claim: ClaimedJob, options: JobOptions, error: BaseException, started_us: int) -> Settlement:
        if isinstance(error, ClaimLostError):
            log.warning("claim.lost", extra={"job_id": claim.id, "claim_no": claim.claim_no})
            return Settlement(claim=claim, outcome=Outcome.RELEASED, is_written=True)
        if isinstance(error, DeadlinePassedError):
            log.info("deadline.passed", extra={"job_id": claim.id, "job": claim.name})
            return Settlement(claim=claim, outcome=Outcome.CANCELLED, started_us=started_us, retention_days=1)
        try:
            policy = options.retry.with_stored(msgspec.json.decode(claim.retry) if claim.retry else None)
        except Exception:  # noqa: BLE001 - somebody else wrote it; ours are checked
            policy = options.retry
        try:
            decision = policy.decide(error, claim.attempt)
        except Exception:  # noqa: BLE001 - a type that cannot be looked up has no rule, and fails so in every attempt
            decision = OnError.DEAD_LETTER
        about = {"job_id": claim.id, "job": claim.name, "attempt": claim.attempt, "decision": decision.value}
        if is_unwieldy(error):
            log.warning("job.failed", extra={**about, "error": storable(text_of(error))})
        else:
            log.warning("job.failed", extra=about, exc_info=error)
        if decision is OnError.DEAD_LETTER:
            return dead(claim, "timeout" if isinstance(error, JobTimeoutError) else "error", error, started_us)
        if decision is OnError.IGNORE:
            return Settlement(
                claim=claim,
                outcome=Outcome.IGNORED,
                started_us=started_us,
                error=describe_error(error),
                retention_days=options.retention_days,
            )
        return Settlement(
            claim=claim,
            outcome=Outcome.RETRY,
            started_us=started_us,
            error=describe_error(error),
            due=Due(delay_us=to_microseconds(policy.delay(max(1, claim.attempt), self._rng))),
        )


def dead(claim: ClaimedJob, reason: str, error: BaseException, started_us: int | None) -> Settlement:
    """The settlement that moves a job to the dead letters."""
    return Settlement(
        claim=claim, outcome=Outcome.DEAD, reason=reason, error=describe_error(error), started_us=started_us
    )


def _writer(end: EndClaim, success: Settlement) -> Write:
    async def write(changes: Changes, jobs: Sequence[NewJob], connection: Any) -> None:
        await end(msgspec.structs.replace(success, follow_ups=tuple(jobs)), changes, connection)

    return write


def _is_cancelled() -> bool:
    """Whether somebody cancels this attempt, through a scope of anyio or by asyncio's own means."""
    task = asyncio.current_task()
    return anyio.current_effective_deadline() == float("-inf") or (task is not None and task.cancelling() > 0)


def _timeout(claim: ClaimedJob, options: JobOptions) -> float | None:
    if claim.timeout_us is not None:
        return claim.timeout_us / 1_000_000
    return None if options.timeout is None else options.timeout.total_seconds()
