"""Commands: requests in the imperative, to an aggregate or to none."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Generic, TypeGuard, TypeVar, cast

import msgspec
from typing_extensions import TypeVar as DefaultTypeVar

from eventflow.errors import InvalidMessageError
from eventflow.ids import Identity, SourceId
from eventflow.messages import Message, declaration, declare

C = TypeVar("C", bound="type[AnyCommand[Any]]")
IdT = TypeVar("IdT", bound=Identity)
ResultT_co = DefaultTypeVar("ResultT_co", covariant=True, default=None)

_NOT_GIVEN = SourceId("to be computed")


class AnyCommand(Message, Generic[ResultT_co]):
    """What bus, middleware and schedulers accept. Derive from :class:`Command` or :class:`StandaloneCommand`."""

    source_id: SourceId = msgspec.field(default_factory=SourceId.new)


class Command(AnyCommand[ResultT_co], Generic[IdT, ResultT_co]):
    """
    A request to one aggregate: ``class PlaceOrder(Command[OrderId, int])``.

    The first parameter is the type of the aggregate's id, the second what ``publish`` returns (default: None).
    """

    aggregate_id: IdT


class StandaloneCommand(AnyCommand[ResultT_co], Generic[ResultT_co]):
    """A request that concerns no aggregate: ``class RebuildIndex(StandaloneCommand[int])``."""


class DistinctCommand(Command[IdT, ResultT_co], Generic[IdT, ResultT_co]):
    """
    A command whose source id follows from its content, so that the same request twice is one operation.

    :meth:`source_id_components` says what makes it the same. The source id is the UUIDv5 of the command's
    stored name, its aggregate id and these components, in EventFlow's namespace for commands. With
    ``exact_source_id = True`` it is the UUIDv5 of the components alone, as EventFlow (.NET) computes it.

    Raises:
        ValueError: there are no components.
    """

    exact_source_id: ClassVar[bool] = False
    source_id: SourceId = _NOT_GIVEN

    def __post_init__(self) -> None:
        if self.source_id is _NOT_GIVEN:
            msgspec.structs.force_setattr(self, "source_id", self._distinct_source_id())

    @abstractmethod
    def source_id_components(self) -> Iterable[bytes]:
        """The bytes that tell this request from others, in order."""
        raise NotImplementedError

    def _distinct_source_id(self) -> SourceId:
        components = list(self.source_id_components())
        if not any(components):
            raise ValueError(f"{type(self).__qualname__}.source_id_components() gave nothing to tell it by")
        if self.exact_source_id:
            return SourceId.deterministic(b"".join(components))
        parts = [declaration(type(self)).name.encode(), str(self.aggregate_id).encode(), *components]
        # With their lengths: ("1", "12") and ("11", "2") are different requests.
        return SourceId.deterministic(b"".join(b"%d:" % len(part) + part for part in parts))


def check_identified(command: AnyCommand[Any]) -> None:
    """
    Refuse a distinct command that has no source id of its own.

    Raises:
        InvalidMessageError: its ``__post_init__`` hides the one that computes the id.
    """
    if command.source_id is _NOT_GIVEN:
        raise InvalidMessageError(type(command), "its __post_init__ must call super().__post_init__()")


def aggregate_id_of(message: Message) -> Identity | None:
    """The aggregate that a command addresses; ``None``: none."""
    aggregate_id = getattr(message, "aggregate_id", None)
    return aggregate_id if isinstance(message, Command) and isinstance(aggregate_id, Identity) else None


def is_command(message: Message) -> TypeGuard[AnyCommand[Any]]:
    """Whether a message is a command, of whatever result."""
    return isinstance(message, AnyCommand)


def command_version(name: str, version: int = 1, *, aliases: Iterable[str] = ()) -> Callable[[C], C]:
    """
    Store a command under this name and version instead of (class name, 1). Subclasses do not inherit it.

    Args:
        name: Stored name; 1 to 150 characters without blanks and colons.
        version: From 1; an upgrader leads from each version to the next.
        aliases: Former names that stored commands of this version may still carry.
    """
    return declare(name, version, tuple(aliases))


def result_type(command_type: type[AnyCommand[Any]]) -> Any:  # Any: whatever annotation stands there
    """
    What a command declares to return: the last type argument of its command base.

    >>> class Count(StandaloneCommand[int]):
    ...     pass
    >>> result_type(Count)
    <class 'int'>
    """
    if command_type in _RESULT_POSITION:
        return type(None)  # derived from without parameters
    for base in vars(command_type).get("__orig_bases__", ()):
        origin = getattr(base, "__origin__", None)
        position = _RESULT_POSITION.get(origin) if origin is not None else None
        if position is not None:
            arguments = base.__args__
            declared = arguments[position] if len(arguments) > position else None
            if isinstance(declared, TypeVar):
                return Any  # a generic command leaves it open
            return type(None) if declared is None else declared
    for parent in command_type.__bases__:
        if issubclass(parent, AnyCommand):
            return result_type(cast("type[AnyCommand[Any]]", parent))
    return type(None)


_RESULT_POSITION: dict[Any, int] = {AnyCommand: 0, StandaloneCommand: 0, Command: 1, DistinctCommand: 1}
