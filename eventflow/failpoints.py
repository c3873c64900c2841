"""
Named places where tests make a process die.

Nothing happens unless the environment says so before the process starts::

    EVENTFLOW_FAILPOINTS = "claim.committed=kill@3,settle.sent=stop"

Actions: ``kill`` (SIGKILL), ``stop`` (SIGSTOP), ``raise`` (:class:`FailpointError`). ``@n`` acts on the n-th
passage only, otherwise the first; ``@every`` on each.
"""

import os
import signal


class FailpointError(Exception):
    """Raised at a failpoint set to ``raise``."""


class _Failpoint:
    def __init__(self, action: str, countdown: int, *, every: bool) -> None:
        self.action = action
        self.countdown = countdown
        self.every = every


def _parse(text: str) -> dict[str, _Failpoint]:
    points: dict[str, _Failpoint] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, action = item.partition("=")
        verb, _, count = action.partition("@")
        if verb not in ("kill", "stop", "raise"):
            raise ValueError(f"EVENTFLOW_FAILPOINTS: {item!r} is not name=kill|stop|raise[@n]")
        every = count == "every"
        points[name] = _Failpoint(verb, 1 if every else int(count or 1), every=every)
    return points


_armed = _parse(os.environ.get("EVENTFLOW_FAILPOINTS", ""))


def arm(text: str) -> None:
    """Act as if the environment had said this, in a process that has already started."""
    _armed.clear()
    _armed.update(_parse(text))


def failpoint(name: str) -> None:
    """Pass a place where a test may end this process."""
    if _armed:
        _pass(name)


def _pass(name: str) -> None:
    point = _armed.get(name)
    if point is None:
        return
    point.countdown -= 1
    if point.countdown > 0:
        return
    if not point.every:
        del _armed[name]
    if point.action == "raise":
        raise FailpointError(name)
    os.kill(os.getpid(), signal.SIGKILL if point.action == "kill" else signal.SIGSTOP)
