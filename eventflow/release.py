"""Which release of eventflow this is."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache  # reading it takes a millisecond
def installed_release() -> str:
    """For example ``"0.3.1"``; ``"unknown"`` in a source tree that is not installed."""
    try:
        return version("eventflow-py")
    except PackageNotFoundError:
        return "unknown"
