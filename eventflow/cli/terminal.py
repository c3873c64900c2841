"""What commands say, free of passwords."""

import os
import sys
import traceback
from types import TracebackType
from urllib.parse import parse_qsl, unquote

from rich.console import Console

HIDDEN = "***"
_SHORTEST_PASSWORD = 4
_WIDTH_OF_A_FILE = 200


class Mask:
    """Replaces the addresses and passwords it knows, wherever they stand in a text."""

    def __init__(self) -> None:
        self._hidden: dict[str, str] = {}

    def hide(self, dsn: str) -> None:
        """From now on, hide this address and the password in it."""
        self._add(dsn, HIDDEN)
        rest = dsn.partition("://")[2]
        userinfo, _, target = rest.rpartition("@")  # as urlsplit would refuse where a password is not quoted
        user, _, password = userinfo.partition(":")
        common = {"", unquote(user), "eventflow", unquote(target.partition("?")[0].rpartition("/")[2])}
        for secret in (password, *(value for key, value in parse_qsl(target.partition("?")[2]) if key == "password")):
            self._add(f":{secret}@", f":{HIDDEN}@")
            for form in (secret, unquote(secret)):
                # One that is also the name of the user or database tells nothing, and would hide half a log.
                if len(form) >= _SHORTEST_PASSWORD and form not in common:
                    self._add(form, HIDDEN)

    def __call__(self, text: str) -> str:
        """The text without what is hidden."""
        for secret, replacement in self._hidden.items():
            text = text.replace(secret, replacement)
        return text

    def _add(self, secret: str, replacement: str) -> None:
        self._hidden[secret] = replacement
        self._hidden = dict(sorted(self._hidden.items(), key=lambda item: -len(item[0])))  # the whole before its parts


class Terminal:
    """
    Standard output for results, standard error for everything else.

    Attributes:
        mask: What is never shown.
        console: For tables. A file gets lines wide enough not to be broken.
    """

    def __init__(self) -> None:
        self.mask = Mask()
        self.console = Console(
            width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE, markup=False, emoji=False, highlight=False
        )

    def result(self, line: str) -> None:
        """A line that scripts may read; it is there at once."""
        print(line, flush=True)

    def note(self, line: str) -> None:
        """A line for people."""
        print(self.mask(line), file=sys.stderr, flush=True)

    def error(self, error: BaseException) -> None:
        """One line for an error that explains itself."""
        self.note(f"error: {error}")

    def abandon(self) -> None:
        """Nobody reads standard output any more; keep the interpreter from flushing it at its end."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def crash(self, error: BaseException, since: TracebackType | None = None) -> None:
        """The whole traceback, or the part of it below *since*."""
        trace = traceback.format_exception(type(error), error, since or error.__traceback__)
        self.note("".join(trace).rstrip())


def printable(text: str) -> str:
    r"""
    The text with its control characters spelled out: what a job holds must not steer a terminal.

    >>> printable("red\x1b[31m, next\nline")
    'red\\x1b[31m, next\nline'
    """
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
