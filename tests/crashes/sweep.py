"""All combinations of where a process dies and the state of its jobs, some of them at once."""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path

import anyio
import msgspec

from tests.crashes.application import Plain
from tests.crashes.points import BEFORE_COMMIT, BEFORE_ITS_END, MID_HANDLER, OF_RESCUER
from tests.crashes.processes import ForkedProcess, command_line, embedded, producer
from tests.crashes.producers import WAYS
from tests.crashes.scene import InconclusiveError, Scene, wait_until
from tests.crashes.states import STATES, End, State
from tests.crashes.verdict import Restart, judge
from tests.support.postgres import Database

SOON = (timedelta(seconds=2), timedelta(seconds=6), timedelta(seconds=10))
"""What is due soon, in the first try and in those after tries that showed nothing."""
MOST_ERRORS = 10
"""After so many the others are not tried: each may take its time to fail."""


class Combination(msgspec.Struct, frozen=True):
    """
    Who dies where, and in which state its jobs are.

    Attributes:
        who: ``worker``, the ``rescuer`` of one that died, or ``producer``.
    """

    who: str
    point: str
    state: str

    def __str__(self) -> str:
        return f"{self.who}-{self.point}-{self.state}"


class Result(msgspec.Struct, frozen=True):
    """
    What came of a combination.

    Attributes:
        reached: A process died there; otherwise none passed the point, as was expected.
        doubts: Why earlier tries showed nothing.
    """

    reached: bool = False
    restarts: Sequence[Restart] = ()
    error: BaseException | None = None
    doubts: tuple[str, ...] = ()


def combinations(who: str) -> list[Combination]:
    """All of one kind."""
    if who == "producer":
        return [Combination(who, point, name) for name, way in WAYS.items() for point in way.points]
    if who == "rescuer":
        return [
            Combination(who, point, name) for name, state in STATES.items() for point in OF_RESCUER if state.is_rescued
        ]
    return [Combination(who, point, name) for name, state in STATES.items() for point in state.points]


def sweep(wanted: Iterable[Combination], databases: Sequence[Database], directory: Path) -> dict[Combination, Result]:
    """Try these combinations, as many at once as there are databases."""
    return asyncio.run(_sweep(list(wanted), databases, directory))


async def _sweep(
    wanted: list[Combination], databases: Sequence[Database], directory: Path
) -> dict[Combination, Result]:
    results: dict[Combination, Result] = {}

    async def work_in(database: Database) -> None:
        await Scene.furnish(database)
        while wanted:
            combination = wanted.pop(0)
            if sum(result.error is not None for result in results.values()) >= MOST_ERRORS:
                results[combination] = Result(error=AssertionError(f"not tried: {MOST_ERRORS} others failed"))
                continue
            doubts: list[str] = []
            for attempt, soon in enumerate(SOON, 1):
                place = directory / f"{combination}-{attempt}"
                place.mkdir()
                result = await _try(database, place, combination, soon)
                results[combination] = msgspec.structs.replace(result, doubts=tuple(doubts))
                if not isinstance(result.error, InconclusiveError):
                    break
                doubts.append(str(result.error))

    async with anyio.create_task_group() as group:
        for database in databases:
            group.start_soon(work_in, database)
    return results


async def _try(database: Database, directory: Path, combination: Combination, soon: timedelta) -> Result:
    try:
        async with Scene.open(database, directory, soon) as scene:
            return await _play(scene, combination)
    except Exception as exc:  # noqa: BLE001 - raised by the test of this combination
        return Result(error=exc)


async def _play(scene: Scene, combination: Combination) -> Result:
    if combination.who == "producer":
        return await _producer_dies(scene, combination)
    state = STATES[combination.state]
    dies_at = combination.point if combination.who == "worker" else MID_HANDLER  # which leaves the most to rescue
    async with scene.app() as app:
        scene.subjects = await state.prepare(scene, app, dies_at)
    worker = _start(scene, state, dies_at)
    reached = await _comes_to(scene, worker, state, dies_at)
    if not reached and state.is_timed:
        raise InconclusiveError("it was never passed in this state")
    unreachable = dies_at in state.unreachable
    assert reached is not unreachable, state.unreachable.get(dies_at, "it was never passed in this state")
    if reached:
        if dies_at in BEFORE_ITS_END:
            await state.provoke(scene, worker, dies_at)
        if combination.who == "worker":
            await scene.kill(worker)
        else:
            await scene.kill(worker, unseen=True)
            await _rescuer_dies(scene, combination.point)
        await scene.bystander()
    await wait_until(scene.nothing_left)

    def end(name: str, kills: int) -> End:
        return state.end(name, dies_at, kills=kills)

    return Result(reached, await judge(scene, end, given_crashes=state.given_crashes))


def _start(scene: Scene, state: State, point: str) -> ForkedProcess:
    failpoints = f"{point}=stop@every"
    if state.settings is not None:
        return scene.start(embedded, state.settings, failpoints=failpoints)
    return scene.start(command_line, *state.options, failpoints=failpoints)


async def _comes_to(scene: Scene, worker: ForkedProcess, state: State, point: str) -> bool:
    """Let a worker go on until it stands at the point in the state; false: it has done everything without that."""
    if point not in BEFORE_ITS_END:
        await state.provoke(scene, worker, point)

    async def stands_or_is_done() -> bool:
        return await worker.stands() or await scene.nothing_left()

    is_probed = False
    while True:
        await wait_until(stands_or_is_done)
        if await worker.stands():
            if any(state.is_here(job, point) for job in await scene.seen()):
                return True
            worker.resume()
        elif is_probed:
            return False
        else:  # what it does after the commit it has done once another job has gone through it
            async with scene.app() as app:
                await app.jobs.schedule(Plain())
            is_probed = True


async def _rescuer_dies(scene: Scene, point: str) -> None:
    """Let another worker rescue the first, and kill it in the middle of that."""
    rescuer = scene.start(command_line, failpoints=f"{point}=stop")
    await wait_until(rescuer.stands)
    await scene.kill(rescuer)


async def _producer_dies(scene: Scene, combination: Combination) -> Result:
    way, point = WAYS[combination.state], combination.point
    await scene.bystander()
    process = scene.start(producer, way.schedule, failpoints=f"{point}=stop")
    reached = point not in way.unreachable
    if reached:
        await wait_until(process.stands)
        await scene.kill(process)
        await wait_until(lambda: scene.is_disconnected(process))
        committed = point not in BEFORE_COMMIT
        assert await scene.written() == (way.jobs if committed else 0, way.writes and committed)
    else:
        await wait_until(scene.has_jobs)
    await wait_until(scene.nothing_left)
    assert reached or not await process.stands(), way.unreachable[point]
    return Result(reached, await judge(scene, lambda _name, _kills: End(), given_crashes=0))
