"""The faults: one vocabulary for the simulator, the rig and the reports."""

from enum import Enum


class Fault(Enum):
    """
    What is made to fail.

    Those of processes concern one worker or producer, those of the server everybody. Real processes meet all of them,
    simulated ones those above :attr:`TERMINATE`.
    """

    KILL = "kill"
    """SIGKILL of a process; another is started later."""
    FREEZE = "freeze"
    """SIGSTOP, and SIGCONT later."""
    STOP = "stop"
    """SIGTERM of a worker; another is started later."""
    BLOCK = "block"
    """A handler keeps the event loop of its worker busy."""
    CUT = "cut"
    """A process's packets are lost, both ways, while its connections stay open."""
    RESET = "reset"
    """A process's connections all break, whatever is under way."""
    SLOW = "slow"
    """A process's network is many times slower."""
    REFUSE = "refuse"
    """The server refuses some calls of a process."""
    LOSE = "lose"
    """The server carries out some calls of a process, and their connection breaks before the answer."""
    DEAFEN = "deafen"
    """The server has dropped the session in which a process listens, and the process has not heard of it."""
    RESTART = "restart"
    """The server ends all sessions and is away for a while."""
    SET_CLOCK = "set_clock"
    """The server's clock is set."""
    TERMINATE = "terminate"
    """The server ends all sessions of a process, one after the other."""
    CRASH = "crash"
    """A process dies at a named point of the code; another is started later."""
    PROMOTE = "promote"
    """The server dies, and its replica takes its place."""
    FILL_DISK = "fill_disk"
    """There is no room on the server's disk."""
    LIMIT = "limit"
    """A DBA has set timeouts that are far too short, and sessions begin anew."""
    EXHAUST = "exhaust"
    """All connections are taken by others, while those of a process break."""
    HOLD = "hold"
    """Somebody's transaction stays open, with locks on jobs."""
    FLOOD = "flood"
    """Notifications that mean nothing fill the queue, and somebody who listens takes none."""
    SCRIBBLE = "scribble"
    """Somebody writes jobs by hand that make no sense."""


HARMLESS = {Fault.RESET, Fault.STOP, Fault.SET_CLOCK, Fault.TERMINATE, Fault.FLOOD, Fault.SCRIBBLE}
"""Those that are no reason to take a worker for dead."""
ON_THE_SERVER = {
    *(Fault.RESTART, Fault.SET_CLOCK, Fault.PROMOTE, Fault.FILL_DISK),
    *(Fault.LIMIT, Fault.HOLD, Fault.FLOOD, Fault.SCRIBBLE, Fault.EXHAUST),
}
"""Those that concern everybody."""
