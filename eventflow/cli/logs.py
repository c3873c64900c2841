"""Log lines of a worker: time, level, process, event and its values."""

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

from eventflow.errors import DatabaseUnavailableError

LogLevel = Literal["debug", "info", "warning", "error"]

_BUILT_IN = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class LineFormatter(logging.Formatter):
    """
    One line for a record, and its traceback below.

    A database that is away has no traceback: it fails many services at once, and where they were tells nothing.

    Args:
        mask: Applied to everything.

    >>> record = logging.makeLogRecord({"name": "eventflow.jobs", "msg": "job.failed", "job": "Mail it"})
    >>> LineFormatter(str).format(record)
    '...Z ... job.failed job="Mail it"'
    """

    def __init__(self, mask: Callable[[str], str]) -> None:
        super().__init__()
        self._mask = mask

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        event = record.getMessage()
        if record.name.partition(".")[0] != "eventflow" and record.name != "root":
            event = f"{record.name}: {event}"
        values = (f"{key}={_shown(value)}" for key, value in vars(record).items() if key not in _BUILT_IN)
        line = " ".join((time, f"{record.levelname:<7}", str(record.process), event, *values))
        if record.exc_info and not isinstance(record.exc_info[1], DatabaseUnavailableError):
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return self._mask(line)


def _shown(value: object) -> str:
    text = str(value)
    plain = text.isprintable() and text and not any(c in ' "=' for c in text)
    return text if plain else json.dumps(text, ensure_ascii=False)


def log_to_stderr(level: LogLevel, mask: Callable[[str], str]) -> None:
    """Show what is logged from here on, unless the application sets logging up itself."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(mask))
    logging.basicConfig(level=level.upper(), handlers=[handler])
