"""Where processes die: at the failpoints of the code, and at two of the application's own."""

from reliability.failpoints import SWEPT

MID_HANDLER = "handler.running"
MID_TRANSACTION = "transaction.open"

CLAIMING = ("claim.sending", "claim.committed")
BEFORE_ITS_START = (*CLAIMING, "job.starting")
BEFORE_ITS_END = (*BEFORE_ITS_START, MID_HANDLER)
IN_HANDS = ("claim.committed", "job.starting", MID_HANDLER, "job.ran", "settle.sending", "settle.follow_ups")
"""What passes one of these is held by the process, as the tables show it."""
BEFORE_COMMIT = ("insert.sending", MID_TRANSACTION)
"""A producer that dies there has written nothing."""


def points_of(who: str) -> tuple[str, ...]:
    """The failpoints at which a ``worker``, ``rescuer`` or ``producer`` is to die."""
    return tuple(point for point, those in SWEPT.items() if who in those)


OF_WORKER = (*points_of("worker"), MID_HANDLER)
OF_CLOSING = tuple(point for point in SWEPT if point.startswith("rescue."))
"""Passed by a rescuer, and by a worker that stops in good order."""
OF_RESCUER = points_of("rescuer")
OF_PRODUCER = points_of("producer")
