"""How commands end."""

from enum import IntEnum

from eventflow.errors import EventFlowError


class ExitCode(IntEnum):
    """
    Exit codes of all commands.

    A process ended at once by a second signal exits with 128 and its number. So it looks to a shell if the first
    signal comes before Python listens: nothing has begun then.
    """

    DONE = 0
    FAILED = 1
    """An error that the command cannot go on from; one line says which."""
    USAGE = 2
    MIGRATIONS_MISSING = 3
    """``migrate --check``."""
    NOT_FOUND = 4
    """``jobs show`` and ``jobs cancel``."""
    FORCED = 5
    """A worker that was told to stop, but whose handlers did not end."""
    CRASHED = 70
    """A bug, in eventflow or in the application; the traceback is on stderr. EX_SOFTWARE of sysexits.h."""


class UsageError(EventFlowError):
    """The command line, or the environment it is run in, asks for something that cannot be."""
