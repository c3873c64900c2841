"""Catches a subscriber up with events from before it was there."""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

import msgspec

from eventflow.errors import UnknownSubscriberError
from eventflow.eventstore import EventStore
from eventflow.jobs import NewJob
from eventflow.subscribers.dispatcher import EventDispatcher, Place

PAGE = 500
"""Events that are read, and given their jobs, in one step."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """
    How far a subscriber has been caught up.

    Attributes:
        cursor: Of the reader of all events.
        events_read: All events, also those that the subscriber does not want.
        jobs_made: For those that it wanted and had no job for.
        is_finished: Everything that was there when the last page was read has its job.
    """

    cursor: str = ""
    events_read: int = 0
    jobs_made: int = 0
    is_finished: bool = False


class CatchUpStore(Protocol):
    """Remembers how far subscribers are."""

    async def load(self, subscriber: str) -> Progress | None:
        """What was saved; ``None``: nothing."""
        ...

    async def save(
        self, subscriber: str, progress: Progress, jobs: Sequence[NewJob], places: Sequence[Place] | None
    ) -> int:
        """
        Add jobs and remember the progress, in one transaction.

        Args:
            subscriber: Its name.
            progress: What to remember; the jobs are counted by the store.
            jobs: Those that exist already are left out.
            places: Their events, for a subscriber that takes them in order: then only the first job of a stream is
                added, and none where it is being caught up already, or has not come so far yet.

        Returns:
            The number of jobs that were added.
        """
        ...


class CatchUp:
    """
    Gives subscribers the jobs that they have missed.

    Args:
        dispatcher: Makes the jobs.
        events: Where events are read.
        store: Remembers how far it is.
    """

    def __init__(self, dispatcher: EventDispatcher, events: EventStore, store: CatchUpStore) -> None:
        self._dispatcher = dispatcher
        self._events = events
        self._store = store

    async def run(self, subscriber: str) -> AsyncGenerator[Progress]:
        """
        Go through all events, from where it stopped the last time, or from the beginning if it had finished.

        An event for which there is a job, waiting, running, dead or in the history, gets none; one that was dealt with
        so long ago that its job is forgotten gets another. Yields after each page; may be stopped anywhere.

        Raises:
            UnknownSubscriberError: there is no such subscriber.
        """
        subscription = self._dispatcher.find(subscriber)
        if subscription is None:
            raise UnknownSubscriberError(subscriber, self._dispatcher.names())
        is_ordered = subscription.subscriber.is_ordered
        progress = await self._store.load(subscriber)
        if progress is None or progress.is_finished:
            progress = Progress()
        while not progress.is_finished:
            page = await self._events.read_all(progress.cursor, limit=PAGE)
            wanted = [e for e in page.events if subscription in self._dispatcher.interested(e.name, e.version)]
            places = [Place.of(event) for event in wanted]
            jobs = [self._dispatcher.job(subscription, place, catches_up=is_ordered) for place in places]
            progress = msgspec.structs.replace(
                progress,
                cursor=page.cursor,
                events_read=progress.events_read + len(page.events),
                is_finished=page.is_last,
            )
            made = await self._store.save(subscriber, progress, jobs, places if is_ordered else None)
            progress = msgspec.structs.replace(progress, jobs_made=progress.jobs_made + made)
            yield progress
