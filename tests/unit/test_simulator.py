"""The simulator: time that costs nothing, processes that die, networks that lose answers, and seeds that decide."""

import logging
from collections.abc import Callable, Generator
from random import Random

import anyio
import anyio.lowlevel
import pytest

from eventflow.errors import CommitUnknownError, DatabaseUnavailableError
from eventflow.jobs.worker import Worker
from eventflow.postgres.connection import STATEMENT_SECONDS
from reliability.asking import Producer
from reliability.checker import Violation
from reliability.faults import Fault
from reliability.history import Evidence
from reliability.scenario import Ask, PlannedFault, Scenario, WorkerPlan, scenario
from reliability.simulator import shrink as shrinking
from reliability.simulator.clocks import SimulatedClock
from reliability.simulator.link import Link
from reliability.simulator.loop import THREAD, DeadlockError, Process, SimulatedLoop
from reliability.simulator.run import Result, play
from reliability.simulator.server import Server
from reliability.simulator.stores import commit, read

pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")  # what a kill has cut off


@pytest.fixture
def loop() -> Generator[SimulatedLoop]:
    """A loop that is closed in the end."""
    simulated = SimulatedLoop(Random(1))
    yield simulated
    simulated.close()


@pytest.fixture(autouse=True)
def quiet() -> Generator[None]:
    """Nobody reads what hundreds of failing calls log."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_a_seed_always_goes_the_same_way() -> None:
    """Whatever was played before it."""
    first = play(scenario(7)).evidence
    play(scenario(8))

    assert play(scenario(7)).evidence == first
    assert play(scenario(8)).evidence != first


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_wrong(seed: int) -> None:
    """In a few seeds: ``make simulate`` plays thousands."""
    assert play(scenario(seed)).violations == []


@pytest.mark.parametrize(
    ("error", "told"),
    [(ValueError("broken"), ": ValueError('broken')"), (None, ", and nobody has asked it to stop")],
    ids=["fails", "leaves"],
)
def test_a_worker_that_ends_by_itself_is_noticed(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, told: str
) -> None:
    """And is missed in the end, though others do its work."""
    goes_on = Worker.run

    async def run(worker: Worker) -> None:
        if THREAD.get().process.name != "worker-1.1":
            await goes_on(worker)
        elif error is not None:
            raise error

    monkeypatch.setattr(Worker, "run", run)

    [ended, missing] = play(quiet_run()).violations

    assert str(ended) == f"I11: worker-1.1 has ended{told}"
    assert str(missing).startswith("I11: worker-1 is not there 60.")


def test_a_worker_that_fails_when_it_is_asked_to_stop_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if another one has taken its place."""
    goes_on = Worker.run

    async def run(worker: Worker) -> None:
        await goes_on(worker)
        if THREAD.get().process.name == "worker-1.1":
            raise ValueError("broken")

    monkeypatch.setattr(Worker, "run", run)
    stops = PlannedFault(at=0.5, fault=Fault.STOP, target=1, seconds=0.1, amount=1)

    [ended] = play(quiet_run(stops)).violations

    assert str(ended) == "I11: worker-1.1 has ended: ValueError('broken')"


def test_a_call_without_an_end_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it longer than a minute."""

    async def make(_producer: Producer, _ask: Ask) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(Producer, "make", make)

    [call, *_] = play(quiet_run()).violations

    assert str(call).startswith("I11: call 1 of producer-0.1 is under way 60.")


def quiet_run(*faults: PlannedFault) -> Scenario:
    """Two workers, a producer and a job."""
    asks = (Ask(at=0.1, producer=0, number=1, what="work"),)
    return Scenario(1, (WorkerPlan(), WorkerPlan()), 1, asks, faults)


def test_time_costs_nothing(loop: SimulatedLoop) -> None:
    """A year passes as soon as nobody has anything to do before it is over."""
    year = 365.0 * 24 * 60 * 60

    loop.run(SimulatedClock(loop).sleep(year))

    assert year <= loop.time() < year + 1


def test_nobody_waits_for_ever(loop: SimulatedLoop) -> None:
    """Where nothing can happen any more, it is said, and not waited for."""
    with pytest.raises(DeadlockError):
        loop.run(anyio.sleep_forever())


def test_a_killed_process_does_nothing_more(loop: SimulatedLoop) -> None:
    """No ``finally`` runs, and no timer goes off."""
    process, done = Process(loop, "victim"), list[str]()

    async def work() -> None:
        try:
            await SimulatedClock(loop).sleep(2)
            done.append("slept")
        finally:
            done.append("finally")

    async def watch() -> None:
        process.thread().start(work())
        await SimulatedClock(loop).sleep(1)
        process.kill()
        await SimulatedClock(loop).sleep(10)

    loop.run(watch())

    assert done == []


def test_timers_of_a_frozen_process_go_off_when_it_goes_on(loop: SimulatedLoop) -> None:
    """At once then, as after SIGCONT."""
    process, woke_at = Process(loop, "sleeper"), list[float]()

    async def work() -> None:
        await SimulatedClock(loop).sleep(2)
        woke_at.append(loop.time())

    async def watch() -> None:
        process.thread().start(work())
        await SimulatedClock(loop).sleep(1)
        process.is_frozen = True
        await SimulatedClock(loop).sleep(4)
        process.thaw()
        await SimulatedClock(loop).sleep(0.001)

    loop.run(watch())

    assert woke_at == [pytest.approx(5, abs=0.001)]


def test_a_blocked_thread_does_not_hold_up_the_others(loop: SimulatedLoop) -> None:
    """Of its own process either."""
    process, log = Process(loop, "worker"), list[tuple[str, int]]()
    blocked, other = process.thread(), process.thread()

    async def block() -> None:
        blocked.block(3)
        await anyio.lowlevel.checkpoint()
        log.append(("blocked", round(loop.time())))

    async def tick() -> None:
        for _ in range(2):
            await SimulatedClock(loop).sleep(1)
            log.append(("other", round(loop.time())))

    async def watch() -> None:
        blocked.start(block())
        other.start(tick())
        await SimulatedClock(loop).sleep(5)

    loop.run(watch())

    assert log == [("other", 1), ("other", 2), ("blocked", 3)]


def test_seeds_choose_between_threads_and_keep_the_order_within() -> None:
    """As processes of a machine go on in any order, and each in its own."""

    def order(seed: int) -> tuple[str, ...]:
        loop, log = SimulatedLoop(Random(seed)), list[str]()

        async def work(name: str) -> None:
            for number in range(3):
                log.append(f"{name}{number}")
                await anyio.lowlevel.checkpoint()

        async def watch() -> None:
            for name in "ab":
                Process(loop, name).thread().start(work(name))
            await SimulatedClock(loop).sleep(1)

        loop.run(watch())
        loop.close()
        return tuple(log)

    orders = {order(seed) for seed in range(50)}

    assert len(orders) > 5
    for seen in orders:
        assert [step for step in seen if step[0] == "a"] == ["a0", "a1", "a2"]
        assert [step for step in seen if step[0] == "b"] == ["b0", "b1", "b2"]


class Network:
    """A process with a link, which writes numbers."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self.loop = loop
        self.process = Process(loop, "client")
        self.thread = self.process.thread()
        self.server = Server(loop)
        self.link = Link(loop, self.server, self.thread.context(), Random(1))
        self.written: list[int] = []

    async def write(self, number: int) -> int:
        """What the server does."""
        self.written.append(number)
        return number


def called(network: Network, fail: Callable[[Link], None], *, commits: bool) -> str:
    """What a call comes to after something has failed, and when."""

    async def call() -> str:
        try:
            if commits:
                await commit(network.link, ["1"], network.write, 1)
            else:
                await read(network.link, network.write, 1)
        except (DatabaseUnavailableError, CommitUnknownError) as exc:
            return type(exc).__name__
        return "done"

    async def run() -> str:
        fail(network.link)
        return await network.thread.start(call())

    return network.loop.run(run())


@pytest.mark.parametrize(
    ("fault", "commits", "told", "written"),
    [
        ("losses", True, "CommitUnknownError", [1]),
        ("losses", False, "DatabaseUnavailableError", [1]),
        ("refusals", True, "DatabaseUnavailableError", []),
        ("refusals", False, "DatabaseUnavailableError", []),
    ],
)
def test_calls_fail_in_both_ways(loop: SimulatedLoop, fault: str, commits: bool, told: str, written: list[int]) -> None:
    """One that is refused has not been carried out; one whose answer is lost has been, and who commits cannot know."""
    network = Network(loop)

    assert called(network, lambda link: setattr(link, fault, 1), commits=commits) == told
    assert network.written == written


def test_what_was_sent_while_the_network_was_away_arrives_later(loop: SimulatedLoop) -> None:
    """The caller has long given up by then."""
    network = Network(loop)

    assert called(network, lambda link: setattr(link, "is_cut", True), commits=True) == "CommitUnknownError"
    assert loop.time() == pytest.approx(STATEMENT_SECONDS, abs=0.01)
    assert network.written == []

    async def heal() -> None:
        network.link.heal()
        await SimulatedClock(loop).sleep(1)

    loop.run(heal())

    assert network.written == [1]


def test_a_failing_scenario_is_made_as_small_as_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left fails in the same way."""
    asks = tuple(Ask(at=number, producer=0, number=number, what="work", nap=1.0) for number in range(5))
    faults = tuple(PlannedFault(number, fault, 0, 1.0, 1) for number, fault in enumerate((*Fault, *Fault)))
    nothing = Evidence([], [], 0.0, 0.0, clock_was_set=False, doomed=set(), cancelled=set())

    def fake(played: Scenario) -> Result:
        fails = any(ask.number == 3 for ask in played.asks) and any(f.fault is Fault.KILL for f in played.faults)
        return Result([Violation("I1", "lost")] if fails else [Violation("I9", "another")], nothing, (), ())

    monkeypatch.setattr(shrinking, "play", fake)

    least = shrinking.shrink(Scenario(1, (WorkerPlan(),), 1, asks, faults))

    assert [(ask.number, ask.nap) for ask in least.asks] == [(3, 0.0)]
    assert [fault.fault for fault in least.faults] == [Fault.KILL]
