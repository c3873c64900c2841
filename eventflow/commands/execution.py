"""Runs a command's handler on its aggregate: load, handle, commit; again if others got in between."""

import logging
from collections.abc import Awaitable, Callable, Sequence
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
    EventFlowError,
    InvalidMessageError,
    OptimisticConcurrencyError,
    UndecodableMessageError,
)
from eventflow.eventstore import Changes, Event, EventMetadata, History, Receipt, ReceiptKey, Snapshot, StreamId
from eventflow.failpoints import failpoint
from eventflow.ids import Identity
from eventflow.messages import declaration
from eventflow.services import Services, ServiceScope

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


class _Run:
    """
    One run of the handler, with the middleware around it; nothing of it is written yet.

    Attributes:
        aggregate: With what the handler has emitted; ``None``: the handler takes none, or has failed.
        result: Of the outermost middleware.
    """

    def __init__(
        self,
        operation: _Operation,
        load: Callable[[_Operation], Awaitable[Aggregate[Any] | None]],
        middleware: Sequence[CommandMiddleware],
        services: ServiceScope,
    ) -> None:
        self.aggregate: Aggregate[Any] | None = None
        self.result: Any = None
        self.context = CommandContext(
            services=services,
            source_id=operation.command.source_id,
            unit=operation.unit,
            stream=operation.stream,
        )
        self._operation = operation
        self._load = load
        self._middleware = middleware
        self._is_loaded = False

    async def run(self) -> None:
        """Load the aggregate and run everything on it."""
        await self._load_aggregate()
        failpoint("command.loaded")
        await self._operation.unit.admitted()
        self.result = await self._through(0, self._operation.command)

    async def _through(self, position: int, command: AnyCommand[Any]) -> Any:  # Any: of whatever command it is
        if position == len(self._middleware):
            return await self._handle(command)

        def call_next(passed_on: AnyCommand[Any]) -> Awaitable[Any]:
            return self._through(position + 1, passed_on)

        return await self._middleware[position](command, self.context, call_next)

    async def _handle(self, command: AnyCommand[Any]) -> Any:  # Any: as above
        handler = self._operation.handler
        if not self._is_loaded:  # middleware has it tried again
            await self._load_aggregate()
        try:
            if self.aggregate is None:
                return await handler(command, self.context)
            return await handler(self.aggregate, command, self.context)
        except Exception:  # middleware may answer for it, and then nothing of a failed handler is written
            self.aggregate, self._is_loaded = None, False
            self.context.deadlines.clear()
            await self._operation.unit.begin()
            raise

    async def _load_aggregate(self) -> None:
        self.aggregate = await self._load(self._operation)
        self._is_loaded = True


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
                    await unit.commit(_changes(operation, run, self._snapshot_of(run)))
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
        async with self._services.scope() as services:
            run = _Run(operation, self._load, self._middleware, services)
            try:
                await run.run()
            except DuplicateOperationError as exc:
                own = operation.receipt.duplicate()
                if (exc.source_id, exc.scope) == (own.source_id, own.scope):
                    raise
                # Of another command, that the handler published. Passed on, it would say that this one was done.
                raise EventFlowError(f"{operation.handler.name} did not catch: {exc}") from exc
        return run

    def _snapshot_of(self, run: _Run) -> Snapshot | None:
        return None if run.aggregate is None else self._repository.snapshot_of(run.aggregate)

    async def _load(self, operation: _Operation) -> Aggregate[Any] | None:
        async def look(snapshot_version: int | None) -> History:
            history = await operation.unit.look(operation.stream, operation.receipt, snapshot_version)
            _raise_if_done(operation, history)
            return history

        if operation.handler.aggregate_type is None or operation.aggregate_id is None:
            await look(None)
            return None
        return await self._repository.load_by(look, operation.handler.aggregate_type, operation.aggregate_id)


def _operation(command: AnyCommand[Any], handler: CommandHandler, unit: UnitOfWork) -> _Operation:
    aggregate_id = aggregate_id_of(command)
    stream = None
    if handler.aggregate_type is not None:
        if aggregate_id is None:  # fields are not checked when a command is made
            raise InvalidMessageError(type(command), "aggregate_id: it is no Identity")
        stream = stream_of(handler.aggregate_type, aggregate_id)
    scope = stream.aggregate_name if stream is not None else declaration(type(command)).name
    receipt = ReceiptKey(scope, str.__str__(aggregate_id or ""), str.__str__(command.source_id))
    return _Operation(command, handler, unit, aggregate_id, stream, receipt)


def _changes(operation: _Operation, run: _Run, snapshot: Snapshot | None) -> Changes:
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
        deadlines=run.context.deadlines,
        fires=unit.deadline,
        snapshot=snapshot,
    )


def _stored_result(operation: _Operation, result: Any) -> bytes:
    try:
        return operation.handler.result.encode(result)
    except InvalidMessageError as exc:
        raise InvalidMessageError(
            type(operation.command), f"{operation.handler.name} returned {result!r}: {exc.reason}"
        ) from exc


def _raise_if_done(operation: _Operation, history: History) -> None:
    if history.result is None:
        return
    try:
        result = operation.handler.result.decode(history.result)
    except UndecodableMessageError:  # of another command that had the same source id
        result = history.result
    raise operation.receipt.duplicate(result)
