"""What each fault does to simulated processes, their networks and the server."""

from collections.abc import Callable

from reliability.faults import ON_THE_SERVER, Fault
from reliability.history import AnyEntry, Failed
from reliability.scenario import PlannedFault
from reliability.simulator.crew import Crew, Seat
from reliability.simulator.loop import SimulatedLoop
from reliability.simulator.server import Server

SLOWER = 5.0
"""Times the amount of a fault, so much slower is the network."""


class Failing:
    """
    Makes things fail.

    Args:
        note: Takes what happens.
    """

    def __init__(self, crew: Crew, loop: SimulatedLoop, server: Server, note: Callable[[AnyEntry], None]) -> None:
        self._crew = crew
        self._loop = loop
        self._server = server
        self._note = note
        self._furthest = 0.0

    def fail(self, planned: PlannedFault) -> None:
        """Have something fail; what lasts is over after its time."""
        seat = self._crew.seats[planned.target]
        target = "server" if planned.fault in ON_THE_SERVER else seat.member.name
        self._note(Failed(self._loop.time(), planned.fault.value, target, planned.seconds))
        _FAILURES[planned.fault](self, seat, planned)

    def heal(self) -> None:
        """All is well again, at once."""
        self._server.is_up = True
        self._server.clock.ahead = max(self._furthest, self._server.clock.ahead)  # what was due then must come
        for member in self._crew.members:
            member.machine.process.thaw()
            link = member.machine.link
            link.refusals = link.losses = 0
            link.slowness = 1.0
            link.heal()

    def _kill(self, seat: Seat, planned: PlannedFault) -> None:
        self._crew.kill(seat, planned.seconds)

    def _freeze(self, seat: Seat, planned: PlannedFault) -> None:
        process = seat.member.machine.process
        process.is_frozen = True
        self._later(planned, process.thaw)

    def _stop(self, seat: Seat, planned: PlannedFault) -> None:
        self._crew.replace(seat, planned.seconds)

    def _cut(self, seat: Seat, planned: PlannedFault) -> None:
        link = seat.member.machine.link
        link.is_cut = True
        self._later(planned, link.heal)

    def _reset(self, seat: Seat, _: PlannedFault) -> None:
        seat.member.machine.link.reset()

    def _slow(self, seat: Seat, planned: PlannedFault) -> None:
        link = seat.member.machine.link
        link.slowness = planned.amount * SLOWER
        self._later(planned, lambda: setattr(link, "slowness", 1.0))

    def _refuse(self, seat: Seat, planned: PlannedFault) -> None:
        seat.member.machine.link.refusals += planned.amount

    def _lose(self, seat: Seat, planned: PlannedFault) -> None:
        seat.member.machine.link.losses += planned.amount

    def _deafen(self, seat: Seat, _: PlannedFault) -> None:
        for session in seat.member.machine.link.sessions:
            session.forget()

    def _restart(self, _: Seat, planned: PlannedFault) -> None:
        self._server.is_up = False
        for member in self._crew.members:
            member.machine.link.reset()
        self._server.restart()
        self._later(planned, lambda: setattr(self._server, "is_up", True))

    def _set_clock(self, _: Seat, planned: PlannedFault) -> None:
        self._furthest = max(self._furthest, self._server.clock.ahead)
        self._server.clock.ahead += planned.seconds

    def _later(self, planned: PlannedFault, action: Callable[[], None]) -> None:
        self._loop.main.later(planned.seconds, action)


_FAILURES: dict[Fault, Callable[[Failing, Seat, PlannedFault], None]] = {
    Fault.KILL: Failing._kill,
    Fault.FREEZE: Failing._freeze,
    Fault.STOP: Failing._stop,
    Fault.CUT: Failing._cut,
    Fault.RESET: Failing._reset,
    Fault.SLOW: Failing._slow,
    Fault.REFUSE: Failing._refuse,
    Fault.LOSE: Failing._lose,
    Fault.DEAFEN: Failing._deafen,
    Fault.RESTART: Failing._restart,
    Fault.SET_CLOCK: Failing._set_clock,
}
