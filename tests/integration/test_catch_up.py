"""A subscriber that was added later gets the events from before."""

from random import Random

import anyio
import pytest

from eventflow import (
    Aggregate,
    App,
    Command,
    CommandContext,
    Event,
    EventFlow,
    EventFlowError,
    Identity,
    JobState,
    SubscriberContext,
    SystemClock,
    UnknownSubscriberError,
    applies,
)
from eventflow.cli.trace import story_trees
from eventflow.postgres import Connection, PostgresDatabase
from eventflow.subscribers import Progress, catch_up
from tests.support.waiting import eventually, waits_for_lock


class CounterId(Identity):
    """Of a counter."""


class Counted(Event):
    """One more."""


class Counter(Aggregate[CounterId]):
    """Counts."""

    number: int = 0

    @applies
    def _counted(self, event: Counted) -> None:
        self.number += 1


class Count(Command[CounterId]):
    """Count so many times."""

    times: int = 1


def counting() -> EventFlow:
    """A flow without subscribers."""
    flow = EventFlow("counting")

    @flow.command_handler
    async def count(counter: Counter, command: Count, context: CommandContext) -> None:
        for _ in range(command.times):
            counter.emit(Counted())

    return flow


def with_subscriber(seen: list[tuple[str, int]], *, ordered: bool) -> EventFlow:
    """The same with one."""
    flow = counting()

    @flow.subscriber(ordered=ordered)
    async def note(event: Counted, context: SubscriberContext) -> None:
        seen.append((context.aggregate_id, context.stream_version))

    return flow


async def emptied(app: App) -> None:
    """Wait until all jobs have ended."""

    async def ended() -> bool:
        jobs = await app.jobs.find(limit=1000)  # in one look: they move
        return not any(job.state in (JobState.WAITING, JobState.RUNNING) for job in jobs)

    await eventually(ended)


@pytest.mark.parametrize("ordered", [False, True], ids=["in any order", "ordered"])
async def test_subscriber_gets_each_event_once_wherever_it_is_stopped(
    dsn: str, ordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events of before, and of after by processes that know it; then nothing more."""
    monkeypatch.setattr(catch_up, "PAGE", 4)
    counters = [CounterId.new() for _ in range(3)]
    async with counting().open(dsn) as old:
        for counter in counters:
            await old.commands.publish(Count(aggregate_id=counter, times=5))
    seen: list[tuple[str, int]] = []
    async with with_subscriber(seen, ordered=ordered).open(dsn) as app, app.worker():
        await app.commands.publish(Count(aggregate_id=counters[0]))  # has its job
        await emptied(app)
        first = await _some(app, 2)
        rest = [progress async for progress in app.catch_up("note")]
        await emptied(app)

        assert [p.events_read for p in first] == [4, 8]
        assert (rest[0].events_read, rest[-1].events_read, rest[-1].is_finished) == (12, 16, True)
        wanted = {(str(counter), n) for counter in counters for n in range(1, 6)} | {(str(counters[0]), 6)}
        assert set(seen) == wanted
        assert len(seen) == len(wanted)
        if ordered:
            for counter in counters[1:]:
                assert [n for c, n in seen if c == counter] == [1, 2, 3, 4, 5]
            assert [n for c, n in seen if c == counters[0]] == [6, 1, 2, 3, 4, 5]
        again = [progress async for progress in app.catch_up("note")]
        assert again[-1].jobs_made == 0


async def test_page_and_an_append_that_wait_for_each_other_are_both_written(dsn: str, admin: Connection) -> None:
    """Catching up begins lines in their order, the append in another; what the server refuses is tried again."""
    one, other = sorted(CounterId.new() for _ in range(2))
    seen: list[tuple[str, int]] = []
    async with counting().open(dsn) as old:
        for counter in (one, other):
            await old.commands.publish(Count(aggregate_id=counter))

    async with with_subscriber(seen, ordered=True).open(dsn) as app, app.worker():
        async with anyio.create_task_group() as group, app.transaction() as connection:
            await app.commands.publish(Count(aggregate_id=other), connection=connection)
            group.start_soon(_all_pages, app)
            await eventually(lambda: waits_for_lock(admin, "Give a subscriber the jobs"))
            await app.commands.publish(Count(aggregate_id=one), connection=connection)
        await emptied(app)
    assert set(seen) == {(str(counter), number) for counter in (one, other) for number in (1, 2)}
    assert len(seen) == 4


async def _all_pages(app: App) -> None:
    assert [progress.is_finished async for progress in app.catch_up("note")][-1]


async def _some(app: App, pages: int) -> list[Progress]:
    """Catch up for so many pages, and stop."""
    caught = app.catch_up("note")
    seen = [await anext(caught) for _ in range(pages)]
    await caught.aclose()
    return seen


async def test_subscriber_that_is_not_there_is_named_with_those_that_are(dsn: str) -> None:
    """So that a misspelt name is not taken for one with nothing to do."""
    async with with_subscriber([], ordered=False).open(dsn) as app:
        with pytest.raises(UnknownSubscriberError, match="no subscriber 'note2'; there are: note"):
            await anext(app.catch_up("note2"))
    async with with_subscriber([], ordered=False).open("memory:") as app:
        with pytest.raises(EventFlowError, match="needs a database"):
            app.catch_up("note")


async def test_story_is_found_from_each_of_its_links(dsn: str) -> None:
    """From the job to its command's events, to the jobs that those caused; asked by any id, also of the command."""
    seen: list[tuple[str, int]] = []
    async with (
        PostgresDatabase.open(dsn, clock=SystemClock(), rng=Random(1)) as database,
        with_subscriber(seen, ordered=False).open(dsn) as app,
        app.worker(),
    ):
        command = Count(aggregate_id=CounterId.new(), times=2)
        job_id = await app.commands.schedule(command)
        await app.commands.publish(Count(aggregate_id=CounterId.new()))  # another story
        await eventually(lambda: _length(seen, 3))
        await emptied(app)
        links = await database.stories.find(job_id)

        kinds = [(link.kind, link.name) for link in links]
        assert sorted(kinds) == [
            ("event", "Counted"),
            ("event", "Counted"),
            ("job", "PublishCommand:Count"),
            ("job", "Subscriber:note"),
            ("job", "Subscriber:note"),
        ]
        events = {link.id for link in links if link.kind == "event"}
        assert {link.causation_id for link in links if link.kind == "event"} == {job_id}
        assert {link.causation_id for link in links if link.name == "Subscriber:note"} == events
        for link_id in (*(link.id for link in links), command.source_id):
            assert await database.stories.find(link_id) == links
        [tree] = story_trees(links)
        depths = [len(child.children) for child in tree.children]
        assert depths == [1, 1]
        assert await database.stories.find("job-0192f0c1-7d3e-7cc1-8f4a-2b1d6f0e9a55") == []


async def _length(seen: list[tuple[str, int]], number: int) -> bool:
    return len(seen) == number
