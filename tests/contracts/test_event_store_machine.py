"""The store in memory and the one on Postgres, side by side: the same calls have the same results."""

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from eventflow.errors import EventFlowError
from eventflow.eventstore import History, StoredEvent, StreamId
from tests.support.event_stores import EventStores, changes, event_stores, receipt, snapshot, stream
from tests.support.postgres import Database

T = TypeVar("T")

STREAMS = st.sampled_from([("Order", 1), ("Order", 2), ("Payment", 1)])
SOURCES = st.sampled_from(["pay", "ship", "cancel"])
"""Few, so that operations are done again."""
OFF = st.sampled_from([0, 0, 0, -1, 1])
"""By how much a writer is wrong about the version."""
LEFT = st.sets(st.sampled_from(["receipt", "snapshot"]))


def test_both_stores_answer_alike(database: Database) -> None:
    """Appends by who has seen all or not, operations done again, snapshots, looks and loads."""

    class Machine(RuleBasedStateMachine):
        """Makes each call on both, and compares what comes of it."""

        def __init__(self) -> None:
            super().__init__()
            self.runner = asyncio.Runner()
            self.opened = AsyncExitStack()
            self.suffix = stream().aggregate_id
            self.versions: dict[StreamId, int] = {}
            self.stores: list[EventStores] = [
                self.run(self.opened.enter_async_context(event_stores(where))) for where in (None, database)
            ]
            self.cursors = [self.run(_end_of(each)) for each in self.stores]
            self.shown: list[list[Any]] = [[], []]

        def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
            return self.runner.run(coroutine)

        def teardown(self) -> None:
            self.run(self.opened.aclose())
            self.runner.close()

        @rule(of=STREAMS, number=st.integers(0, 3), off=OFF, source=SOURCES, leaves=LEFT)
        def append(self, of: tuple[str, int], number: int, off: int, source: str, leaves: set[str]) -> None:
            to = self._stream(of)
            seen = max(0, self.versions.get(to, 0) + off)
            change = changes(
                to,
                *(f'"{source} {seen + n}"' for n in range(number)),
                expected_version=seen,
                receipt=receipt(to, source, f'"{seen}"') if "receipt" in leaves else None,
                snapshot=snapshot(seen + number, f'"{seen + number}"') if "snapshot" in leaves and not off else None,
            )
            if self._both([each.events.append(change) for each in self.stores]) is None:
                self.versions[to] = self.versions.get(to, 0) + number

        @rule(source=SOURCES)
        def do_without_a_stream(self, source: str) -> None:
            change = changes(None, receipt=receipt(None, f"{self.suffix} {source}"))
            self._both([each.events.append(change) for each in self.stores])

        @rule(of=STREAMS, source=SOURCES, readable=st.sampled_from([None, 0, 1, 2]))
        def look(self, of: tuple[str, int], source: str, readable: int | None) -> None:
            to = self._stream(of)
            self._both([each.look(to, source, snapshot_version=readable) for each in self.stores])
            self._both([each.look(None, f"{self.suffix} {source}") for each in self.stores])

        @rule(of=STREAMS, after=st.integers(0, 8), limit=st.sampled_from([None, 0, 1, 3]))
        def load(self, of: tuple[str, int], after: int, limit: int | None) -> None:
            to = self._stream(of)
            self._both([each.events.load(to, after=after, limit=limit) for each in self.stores])

        @rule(limit=st.integers(1, 4))
        def read(self, limit: int) -> None:
            for number, each in enumerate(self.stores):
                page = self.run(each.events.read_all(self.cursors[number], limit=limit))
                self.cursors[number] = page.cursor
                self.shown[number] += map(_plain, page.events)

        @invariant()
        def nothing_is_shown_that_the_other_has_not(self) -> None:
            """The readers may stand at different places, but on one way: everything is appended by one writer."""
            fewer, more = sorted(self.shown, key=len)
            assert more[: len(fewer)] == fewer

        def _stream(self, of: tuple[str, int]) -> StreamId:
            return StreamId(of[0], f"{self.suffix}-{of[1]}")

        def _both(self, calls: list[Coroutine[Any, Any, Any]]) -> Any:  # Any: what either store answers
            here, there = (self.run(_result(call)) for call in calls)
            assert here == there
            return here

    run_state_machine_as_test(  # pyright: ignore[reportUnknownMemberType]
        Machine,
        settings=settings(
            max_examples=30,
            stateful_step_count=40,
            deadline=None,
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


async def _end_of(stores: EventStores) -> str:
    """The cursor behind all events."""
    cursor = ""
    while True:
        page = await stores.events.read_all(cursor)
        cursor = page.cursor
        if page.is_last:
            return cursor


async def _result(call: Coroutine[Any, Any, Any]) -> Any:  # Any: what a store answers, comparable
    try:
        answer = await call
    except EventFlowError as exc:
        return type(exc), str(exc)
    if isinstance(answer, History):
        return answer.result, answer.snapshot, list(answer.events)
    return None if answer is None else [_plain(event) for event in answer]


def _plain(event: StoredEvent) -> tuple[Any, ...]:
    """An event without what every store decides for itself."""
    return event.stream, event.stream_version, event.id, event.name, event.version, event.data, event.metadata
