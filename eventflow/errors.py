"""
Everything eventflow raises, as one tree.

EventFlowError
├── DomainError                          a rule of the domain says no
├── DefinitionError                      the program's own definitions do not fit together
│   ├── DuplicateDefinitionError
│   ├── UnknownDefinitionError
│   │   ├── UnknownCommandDefinitionError
│   │   ├── UnknownEventDefinitionError
│   │   └── UnknownJobDefinitionError
│   ├── InvalidHandlerError
│   ├── DuplicateCommandHandlerError
│   ├── MissingApplierError
│   ├── UnknownSubscriberError
│   └── NoCommandHandlerError
├── InvalidMessageError                  a value that JSON would not bring back as it was
│   └── PayloadTooLargeError
├── UndecodableMessageError              stored text that its type refuses
├── InvalidIdentityError
├── OptimisticConcurrencyError           others wrote to the stream meanwhile
├── DuplicateOperationError              the same source id for the second time
├── StreamGrownError                     a subscriber has not looked at all events before it leaves a stream
├── DeadlinePassedError                  a deadline that was replaced or cancelled meanwhile
├── EventNotFoundError
├── CursorError                          where a reader of all events was, but cannot go on
│   ├── InvalidCursorError
│   └── ForeignCursorError
├── ServiceNotFoundError
├── JobError
│   ├── InvalidScheduleError
│   ├── JobTimeoutError
│   ├── ClaimLostError
│   └── LeaseLostError
├── WorkerError
└── DatabaseError
    ├── DatabaseUnavailableError
    │   └── LockBusyError
    ├── CommitUnknownError
    ├── ValueRefusedError
    ├── ForeignEventsError
    └── SchemaVersionError
"""

from collections.abc import Iterable


def type_name(annotation: object) -> str:
    """What to call a type, also one without a name of its own, such as a union."""
    return getattr(annotation, "__qualname__", str(annotation))


class EventFlowError(Exception):
    """Base of every error that eventflow raises on purpose."""


class DomainError(EventFlowError):
    """
    A rule of the domain refuses the command.

    ``publish`` raises it to its caller and nothing is stored. Inside a job it is not worth a retry: the job
    is dead-lettered, unless its retry policy says otherwise.
    """

    def __init__(self, *errors: str) -> None:
        super().__init__(*errors)
        self.errors: tuple[str, ...] = errors

    def __str__(self) -> str:
        return "; ".join(self.errors) or "the domain refused the command"


class DefinitionError(EventFlowError):
    """A definition of the application cannot work; raised while it is put together, never at run time."""


class DuplicateDefinitionError(DefinitionError, ValueError):
    """Two types claim one stored name and version."""

    def __init__(self, name: str, version: int, first: type, second: type) -> None:
        super().__init__(name, version, first, second)
        self.name = name
        self.version = version
        self.types = (first, second)

    def __str__(self) -> str:
        first, second = (f"{t.__module__}.{t.__qualname__}" for t in self.types)
        return (
            f"{first} and {second} both claim the name {self.name!r} v{self.version}; "
            "give one another name or version with its version decorator"
        )


class UnknownDefinitionError(DefinitionError, LookupError):
    """No type is registered under this name and version."""

    kind = "definition"

    def __init__(self, name: str, version: int) -> None:
        super().__init__(name, version)
        self.name = name
        self.version = version

    def __str__(self) -> str:
        return f"no {self.kind} {self.name!r} v{self.version} is registered"


class UnknownCommandDefinitionError(UnknownDefinitionError):
    """No command is registered under this name and version."""

    kind = "command"


class UnknownEventDefinitionError(UnknownDefinitionError):
    """No event is registered under this name and version."""

    kind = "event"


class UnknownJobDefinitionError(UnknownDefinitionError):
    """No job is registered under this name and version."""

    kind = "job"


class MissingApplierError(DefinitionError, NotImplementedError):
    """An aggregate has no method that applies an event of its own."""

    def __init__(self, aggregate: type, event: type) -> None:
        super().__init__(aggregate, event)
        self.aggregate = aggregate
        self.event = event

    def __str__(self) -> str:
        return (
            f"{self.aggregate.__qualname__} has no method that applies {self.event.__qualname__}: "
            f"@applies def on_{self.event.__qualname__.lower()}(self, event: {self.event.__qualname__}) -> None"
        )


class UnknownSubscriberError(DefinitionError, LookupError):
    """No subscriber has this name."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(known)
        super().__init__(name, self.known)

    def __str__(self) -> str:
        return f"there is no subscriber {self.name!r}; there are: {', '.join(self.known) or 'none'}"


class InvalidHandlerError(DefinitionError, TypeError):
    """A decorated function or class does not have the shape its decorator reads; the message names it."""


class DuplicateCommandHandlerError(DefinitionError):
    """A command has more than one handler."""

    def __init__(self, command: type, handlers: Iterable[str]) -> None:
        self.command = command
        self.handlers = tuple(handlers)
        super().__init__(command, self.handlers)

    def __str__(self) -> str:
        return f"{self.command.__qualname__} has more than one handler: {', '.join(self.handlers)}"


class NoCommandHandlerError(DefinitionError, LookupError):
    """A command was published that nobody handles."""

    def __init__(self, command: type) -> None:
        super().__init__(command)
        self.command = command

    def __str__(self) -> str:
        return (
            f"{self.command.__qualname__} has no handler; register one with @flow.command_handler, "
            "or include the flow that has it"
        )


class InvalidMessageError(EventFlowError, ValueError):
    """A message would not come back from JSON as it is; *reason* names the field."""

    def __init__(self, message_type: type, reason: str) -> None:
        super().__init__(message_type, reason)
        self.message_type = message_type
        self.reason = reason

    def __str__(self) -> str:
        return f"{type_name(self.message_type)} cannot be stored: {self.reason}"


class PayloadTooLargeError(InvalidMessageError):
    """An encoded message is larger or deeper than allowed."""


class UndecodableMessageError(EventFlowError, ValueError):
    """A stored message does not fit its type; *reason* has the path of the field."""

    def __init__(self, name: str, version: int, reason: str) -> None:
        super().__init__(name, version, reason)
        self.name = name
        self.version = version
        self.reason = reason

    def __str__(self) -> str:
        return f"stored {self.name!r} v{self.version} cannot be read: {self.reason}"


class InvalidIdentityError(EventFlowError, ValueError):
    """A text is not an identity of this type."""


class OptimisticConcurrencyError(EventFlowError):
    """The stream has other events than the writer has seen; nothing was written."""

    def __init__(self, stream: object, expected_version: int) -> None:
        super().__init__(stream, expected_version)
        self.stream = stream
        self.expected_version = expected_version

    def __str__(self) -> str:
        return f"{self.stream} has changed since version {self.expected_version}"


class DuplicateOperationError(EventFlowError):
    """
    This operation has been done before; it is not done again.

    Attributes:
        source_id: The operation.
        scope: Whom it concerned: the aggregate's name and id, or the command's name.
        result: What came of it the first time.
    """

    def __init__(self, source_id: str, scope: str, result: object = None) -> None:
        super().__init__(source_id, scope, result)
        self.source_id = source_id
        self.scope = scope
        self.result = result

    def __str__(self) -> str:
        return f"{self.scope} has had operation {self.source_id!r} already; it returned {self.result!r}"


class EventNotFoundError(EventFlowError, LookupError):
    """There is no event at this place of a stream."""

    def __init__(self, stream: object, stream_version: int) -> None:
        super().__init__(stream, stream_version)
        self.stream = stream
        self.stream_version = stream_version

    def __str__(self) -> str:
        return f"{self.stream} has no event {self.stream_version}"


class CursorError(EventFlowError, ValueError):
    """A reader of all events cannot go on from this cursor."""


class InvalidCursorError(CursorError):
    """A text is no cursor of this store."""

    def __init__(self, cursor: str) -> None:
        super().__init__(cursor)
        self.cursor = cursor

    def __str__(self) -> str:
        return f"{self.cursor[:100]!r} is not the cursor of a page of events"


class ForeignCursorError(CursorError):
    """
    A cursor lies in the future of this store: it is another store's, or this one has been set back since.

    Attributes:
        seen: What it has seen the end of: a transaction id, or the position of an event.
        reached: Where the store is.
    """

    def __init__(self, seen: int, reached: int) -> None:
        super().__init__(seen, reached)
        self.seen = seen
        self.reached = reached

    def __str__(self) -> str:
        return (
            f"the cursor has seen {self.seen}, and this store has only come to {self.reached}: "
            "the cursor is another store's, or this one has been set back since"
        )


class StreamGrownError(EventFlowError):
    """There are more events in a stream than a subscriber has looked at for its next one; it looks again."""


class DeadlinePassedError(EventFlowError):
    """The deadline was replaced or cancelled before its command was done; nothing was written."""

    def __init__(self, stream: object, name: str) -> None:
        super().__init__(stream, name)
        self.stream = stream
        self.name = name

    def __str__(self) -> str:
        return f"deadline {self.name!r} of {self.stream} is not this one any more"


class ServiceNotFoundError(EventFlowError, LookupError):
    """A handler asked for a service that nobody registered."""

    def __init__(self, service: type) -> None:
        super().__init__(service)
        self.service = service

    def __str__(self) -> str:
        return f"no service {self.service.__qualname__} is registered; register it in the flow's lifespan"


class JobError(EventFlowError):
    """Base of errors about scheduling and running jobs."""


class InvalidScheduleError(JobError, ValueError):
    """A job was scheduled with options that make no sense; nothing was written."""


class JobTimeoutError(JobError, TimeoutError):
    """An attempt took longer than its timeout and was cancelled."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"the attempt took longer than its timeout of {self.seconds:g} s"


class ClaimLostError(JobError):
    """The job is not this worker's any more, by this claim number; nothing was written."""

    def __init__(self, job_id: str, claim_no: int) -> None:
        super().__init__(job_id, claim_no)
        self.job_id = job_id
        self.claim_no = claim_no

    def __str__(self) -> str:
        return f"claim {self.claim_no} of {self.job_id} is not this worker's any more"


class LeaseLostError(JobError):
    """A worker may no longer write for its jobs: its lease ran out or was taken."""


class WorkerError(EventFlowError):
    """A worker cannot start with these settings."""


class DatabaseError(EventFlowError):
    """Base of errors of the store; the driver's error is the cause."""


class DatabaseUnavailableError(DatabaseError, ConnectionError):
    """The database cannot be reached, or refuses to work just now. Nothing was written."""


class LockBusyError(DatabaseUnavailableError):
    """Somebody else holds a row for too long; nothing was written."""


class CommitUnknownError(DatabaseError):
    """
    The connection broke while a write was under way, and whether it was committed cannot be told.

    *ids* are the jobs concerned: ``get`` tells. Scheduling them again may run them twice.
    """

    def __init__(self, ids: Iterable[str]) -> None:
        self.ids = tuple(ids)
        super().__init__(self.ids)

    def __str__(self) -> str:
        shown = ", ".join(self.ids[:3]) + (", …" if len(self.ids) > 3 else "")
        return f"the connection broke before the commit was confirmed; it may have succeeded: {shown}"


class ValueRefusedError(DatabaseError, ValueError):
    """The database refuses a value, as in a broken constraint; nothing of that statement was written."""


class ForeignEventsError(DatabaseError):
    """
    There are events of transactions that this cluster has yet to begin: they were copied here from another.

    Readers of all events would take them for uncommitted, and miss others later on.
    """

    def __init__(self, xid: int, next_xid: int) -> None:
        super().__init__(xid, next_xid)
        self.xid = xid
        self.next_xid = next_xid

    def __str__(self) -> str:
        return (
            f"there are events of transaction {self.xid}, and this cluster has only come to {self.next_xid}: "
            "they were copied here from another cluster, and cannot be read in order"
        )


class SchemaVersionError(DatabaseError):
    """The tables are missing, or older or newer than this code."""

    def __init__(self, schema: str, found: int | None, wanted: int) -> None:
        super().__init__(schema, found, wanted)
        self.schema = schema
        self.found = found
        self.wanted = wanted

    def __str__(self) -> str:
        if self.found is None:
            return f"schema {self.schema!r} has no eventflow tables; run: eventflow migrate"
        if self.found < self.wanted:
            return (
                f"schema {self.schema!r} is at migration {self.found}, this code needs {self.wanted}; "
                "run: eventflow migrate"
            )
        return (
            f"schema {self.schema!r} is at migration {self.found}, newer than the {self.wanted} this code knows; "
            "deploy the code that migrated it"
        )
