"""Runs a command's handler on its aggregate: load, handle, commit; again if others got in between."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random
from typing import Any

import msgspec

from eventflow.aggregates import Aggregate, AggregateRepository, emitted, stream_of
from eventflow.clock import Clock
from eventflow.commands.command import AnyCommand, aggregate_id_of
from eventflow.commands.context import CommandContext
from eventflow.commands.handlers import CommandHandler
from eventflow.commands.turns import Turns
from eventflow.commands.unit_of_work import UnitOfWork
from eventflow.errors import (
    DuplicateOperationError,
    InvalidMessageError,
    OptimisticConcurrencyError,
    UndecodableMessageError,
)
from eventflow.eventstore import Changes, Event, EventMetadata, History, Receipt, ReceiptKey, Snapshot, StreamId
from eventflow.failpoints import failpoint
from eventflow.ids import Identity, JobId
from eventflow.messages import declaration
from eventflow.services import Services

log = logging.getLogger("eventflow.commands")

CallNext = Callable[[AnyCommand[Any]], Awaitable[Any]]
CommandMiddleware = Callable[[AnyCommand[Any], CommandContext, CallNext], Awaitable[Any]]
"""``async (command, context, call_next) -> result``: goes around every handler, outermost first."""

MOST_TRIES = 6
"""As EventFlow (.NET): five more after a conflict."""
PAUSE_SECONDS = 0.05
"""Most of the random pause before the second try; it doubles with each."""
LOCK_FROM = 3
"""From this try on the stream is locked first, so that the command cannot lose again."""


class _Operation(msgspec.Struct, frozen=True):
    """One execution of a command: what it is about, and where its changes go."""

    command: AnyCommand[Any]
    handler: CommandHandler
    unit: UnitOfWork
    aggregate_id: Identity | None
    stream: StreamId | None
    receipt: ReceiptKey


class _Run(msgspec.Struct, frozen=True):
    """What came of one run of the handler, not written yet."""

    result: Any
    aggregate: Aggregate[Any] | None
    deadlines: Mapping[str, JobId | None]
    snapshot: Snapshot | None


class CommandExecution:
    """
    Executes commands, each as one operation.

    Args:
        repository: Loads aggregates.
        services: Where handlers get their services from.
        middleware: Goes around every handler, the first outermost.
        clock: Measures the pauses after conflicts.
        rng: Source of their jitter.
    """

    def __init__(
        self,
        repository: AggregateRepository,
        *,
        services: Services,
        middleware: Sequence[CommandMiddleware],
        clock: Clock,
        rng: Random,
    ) -> None:
        self._repository = repository
        self._services = services
        self._middleware = tuple(middleware)
        self._clock = clock
        self._rng = rng
        self._turns = Turns()

    async def execute(self, command: AnyCommand[Any], handler: CommandHandler, unit: UnitOfWork) -> Any:
        """
        Run the handler, write what came of it through *unit*, and return its result.

        Raises:
            DuplicateOperationError: it was done before; carries what came of it then.
            OptimisticConcurrencyError: others got in between every time.
            DeadlinePassedError: it is a deadline that was replaced or cancelled.
        """
        operation = _operation(command, handler, unit)
        async with self._turns.turn(operation.stream):
            for tried in range(1, MOST_TRIES + 1):
                await unit.begin()
                if tried >= LOCK_FROM and operation.stream is not None:
                    await unit.lock(operation.stream)
                run = await self._run(operation)
                try:
                    failpoint("command.handled")
                    await unit.commit(_changes(operation, run))
                    failpoint("command.committed")
                except OptimisticConcurrencyError:
                    if tried == MOST_TRIES:
                        raise
                    log.info("command.conflict", extra={"stream": str(operation.stream), "tried": tried})
                    await self._clock.sleep(self._rng.uniform(0, PAUSE_SECONDS * 2 ** (tried - 1)))
                except DuplicateOperationError:  # somebody did it at the same time
                    _raise_if_done(operation, await unit.look(None, operation.receipt, None))
                    raise
                else:
                    return run.result
        raise AssertionError("every try returns or raises")

    async def preview(self, command: AnyCommand[Any], handler: CommandHandler, unit: UnitOfWork) -> tuple[Event, ...]:
        """The events that the handler would emit now; nothing is written."""
        await unit.begin()
        run = await self._run(_operation(command, handler, unit))
        return () if run.aggregate is None else run.aggregate.uncommitted_events

    async def _run(self, operation: _Operation) -> _Run:
        aggregate, snapshot_at = await self._load(operation)
        failpoint("command.loaded")
        async with self._services.scope() as services:
            context = CommandContext(
                services=services,
                source_id=operation.command.source_id,
                unit=operation.unit,
                aggregate_id=operation.aggregate_id if aggregate is not None else None,
            )
            result = await self._through(0, operation.handler, aggregate, operation.command, context)
        snapshot = None if aggregate is None else self._repository.snapshot_of(aggregate, since=snapshot_at)
        return _Run(result, aggregate, context.deadlines, snapshot)

    async def _load(self, operation: _Operation) -> tuple[Aggregate[Any] | None, int]:
        """The aggregate, and the version of its snapshot, 0 if there is none."""
        aggregate_type = operation.handler.aggregate_type
        if aggregate_type is None or operation.aggregate_id is None:
            _raise_if_done(operation, await operation.unit.look(None, operation.receipt, None))
            return None, 0
        readable = self._repository.snapshot_version(aggregate_type)
        history = await operation.unit.look(operation.stream, operation.receipt, readable)
        _raise_if_done(operation, history)
        aggregate = self._repository.rebuild(aggregate_type, operation.aggregate_id, history)
        return aggregate, history.snapshot.stream_version if history.snapshot else 0

    async def _through(
        self,
        position: int,
        handler: CommandHandler,
        aggregate: Aggregate[Any] | None,
        command: AnyCommand[Any],
        context: CommandContext,
    ) -> Any:  # Any: the result of whatever command it is
        if position == len(self._middleware):
            return await (handler(command, context) if aggregate is None else handler(aggregate, command, context))

        def call_next(passed_on: AnyCommand[Any]) -> Awaitable[Any]:
            return self._through(position + 1, handler, aggregate, passed_on, context)

        return await self._middleware[position](command, context, call_next)


def _operation(command: AnyCommand[Any], handler: CommandHandler, unit: UnitOfWork) -> _Operation:
    aggregate_id = aggregate_id_of(command)
    stream = None
    if handler.aggregate_type is not None and aggregate_id is not None:
        stream = stream_of(handler.aggregate_type, aggregate_id)
    scope = stream.aggregate_name if stream is not None else declaration(type(command)).name
    receipt = ReceiptKey(scope, str.__str__(aggregate_id or ""), str.__str__(command.source_id))
    return _Operation(command, handler, unit, aggregate_id, stream, receipt)


def _changes(operation: _Operation, run: _Run) -> Changes:
    unit, aggregate = operation.unit, run.aggregate
    return Changes(
        metadata=EventMetadata(
            source_id=operation.command.source_id,
            command=declaration(type(operation.command)).name,
            job_id=unit.job_id,
            correlation_id=unit.cause.correlation_id,
            causation_id=unit.cause.causation_id,
            traceparent=unit.cause.traceparent,
        ),
        stream=operation.stream,
        expected_version=0 if aggregate is None else aggregate.stream_version,
        events=() if aggregate is None else emitted(aggregate),
        receipt=Receipt(operation.receipt, _stored_result(operation, run.result)),
        deadlines=run.deadlines,
        fires=unit.deadline,
        snapshot=run.snapshot,
    )


def _stored_result(operation: _Operation, result: Any) -> bytes:
    try:
        return operation.handler.result.encode(result)
    except InvalidMessageError as exc:
        raise InvalidMessageError(
            type(operation.command), f"{operation.handler.name} returned {result!r}: {exc}"
        ) from exc


def _raise_if_done(operation: _Operation, history: History) -> None:
    if history.result is None:
        return
    try:
        result = operation.handler.result.decode(history.result)
    except UndecodableMessageError:  # of another command that had the same source id
        result = history.result
    raise operation.receipt.duplicate(result)
