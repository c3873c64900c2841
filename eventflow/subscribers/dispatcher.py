"""From events to subscribers: which jobs follow from an append, and what such a job does."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any
from uuid import UUID

import msgspec

from eventflow.commands import Causation
from eventflow.errors import EventNotFoundError
from eventflow.eventstore import Changes, EventDefinitions, EventId, EventStore, Step, StoredEvent, StreamId
from eventflow.ids import JobId, deterministic_uuid
from eventflow.jobs import JobContext, JobEncoder, JobRecord, JobState, Line, NewJob
from eventflow.subscribers.event_job import EventJob, EventJobRunner
from eventflow.subscribers.subscriber import Subscriber
from eventflow.supervision import Patience

SUBSCRIBERS_NAMESPACE = UUID("0d0a4a6e-5d0c-4c0e-9a5f-2f6d8f7f3b11")
"""Namespace of the ids of subscribers' jobs, so that one event makes one job for one subscriber, ever."""
PAGE = 100
"""Events read at once to find the next of a subscriber."""


_PASSED = (JobState.SUCCEEDED, JobState.IGNORED, JobState.CANCELLED)

FindJob = Callable[[JobId], Awaitable[JobRecord | None]]


class Subscription(msgspec.Struct, frozen=True):
    """A subscriber, and the type of its jobs."""

    subscriber: Subscriber
    job_type: type[EventJob]


class Place(msgspec.Struct, frozen=True):
    """Which event a job is about."""

    stream: StreamId
    stream_version: int
    event_id: EventId
    name: str
    correlation_id: str | None

    @classmethod
    def of(cls, stored: StoredEvent) -> "Place":
        """That of a stored event."""
        return cls(stored.stream, stored.stream_version, stored.id, stored.name, stored.metadata.correlation_id)


class EventDispatcher(EventJobRunner):
    """
    Makes the jobs of subscribers, and runs them.

    Args:
        subscriptions: Who is interested.
        definitions: How events are read.
        events: Where they are.
        encoder: Encodes the jobs.
        find_job: Looks a job up.
        patience: With which events are read.
    """

    def __init__(
        self,
        subscriptions: Iterable[Subscription],
        *,
        definitions: EventDefinitions,
        events: EventStore,
        encoder: JobEncoder,
        find_job: FindJob,
        patience: Patience,
    ) -> None:
        self._definitions = definitions
        self._events = events
        self._encoder = encoder
        self._find_job = find_job
        self._patience = patience
        self._subscriptions = {subscription.job_type: subscription for subscription in subscriptions}
        self._wanted: dict[tuple[str, int], tuple[Subscription, ...]] = {}

    def follow(self, changes: Changes) -> Sequence[NewJob]:
        """The jobs that follow from an append: one for each event and subscriber."""
        if changes.stream is None or not self._subscriptions:
            return ()
        return [
            self.job(subscription, Place(changes.stream, number, event.id, event.name, changes.metadata.correlation_id))
            for number, event in enumerate(changes.events, start=changes.expected_version + 1)
            for subscription in self.interested(event.name, event.version)
        ]

    def interested(self, name: str, version: int) -> Sequence[Subscription]:
        """Who wants events that are stored under this name and version."""
        found = self._wanted.get((name, version))
        if found is None:
            types = self._definitions.results(self._definitions.by_name(name, version).type)
            found = self._wanted[name, version] = tuple(
                subscription
                for subscription in self._subscriptions.values()
                if any(subscription.subscriber.wants(event_type) for event_type in types)
            )
        return found

    def job(self, subscription: Subscription, place: Place, *, catches_up: bool = False) -> NewJob:
        """The job of one event for one subscriber; always the same id."""
        message = subscription.job_type(
            aggregate_name=place.stream.aggregate_name,
            aggregate_id=place.stream.aggregate_id,
            stream_version=place.stream_version,
            event=place.name,
            catches_up=catches_up,
        )
        subscriber = subscription.subscriber
        identity = f"{place.event_id}/{subscriber.name}".encode()
        job_id = JobId.of(str(deterministic_uuid(SUBSCRIBERS_NAMESPACE, identity)))
        new = self._encoder.encode(message, Causation(place.correlation_id or job_id, place.event_id), job_id=job_id)
        if not subscriber.is_ordered:
            return new
        return msgspec.structs.replace(new, line=Line(subscriber.name, place.stream_version))

    def find(self, name: str) -> Subscription | None:
        """The subscription of this name."""
        return next((s for s in self._subscriptions.values() if s.subscriber.name == name), None)

    def names(self) -> list[str]:
        """All subscribers that get jobs."""
        return sorted(subscription.subscriber.name for subscription in self._subscriptions.values())

    async def dispatch(self, job: EventJob, context: JobContext) -> None:
        """
        Have the job's subscriber deal with its event.

        Raises:
            EventNotFoundError: there is no such event.
        """
        subscription = self._subscriptions[type(job)]
        is_ordered = subscription.subscriber.is_ordered
        events = await self.load(job.stream, after=job.stream_version - 1, limit=2 if is_ordered else 1)
        if not events:
            raise EventNotFoundError(job.stream, job.stream_version)
        if is_ordered:
            context.unit.next_step = _NextStep(self, subscription, job, events[1:])
        if not job.passes_over:
            wanted = [r for r in self._definitions.read(events[0]) if subscription.subscriber.wants(type(r.event))]
            await subscription.subscriber.handle(wanted, context)

    async def load(self, stream: StreamId, *, after: int, limit: int, connection: Any = None) -> Sequence[StoredEvent]:
        """Events of a stream."""

        async def read() -> Sequence[StoredEvent]:
            return await self._events.load(stream, after=after, limit=limit, connection=connection)

        return await (read() if connection is not None else self._patience.read(stream, read))

    async def find_job(self, job_id: JobId) -> JobRecord | None:
        """Look a job up."""
        return await self._find_job(job_id)


class _NextStep:
    """
    Goes from an event of a stream to the next that the subscriber wants.

    Args:
        ahead: The events that are known to follow.
    """

    def __init__(
        self, dispatcher: EventDispatcher, subscription: Subscription, job: EventJob, ahead: Sequence[StoredEvent]
    ) -> None:
        self._dispatcher = dispatcher
        self._subscription = subscription
        self._job = job
        self._ahead = ahead
        self._seen = job.stream_version
        self._asked_before = False
        self._connection: Any = None
        self._found: tuple[Step, NewJob | None] | None = None

    async def __call__(self, connection: Any) -> tuple[Step, NewJob | None]:
        """
        Where it goes, as far as events are known; called again, it looks whether there are more by now.

        Args:
            connection: Of the transaction that the step is written in, which may have appended events itself.
        """
        self._connection = connection
        if self._asked_before and not self._ahead:
            await self._look()
        self._asked_before = True
        while self._found is None and self._ahead:
            await self._walk()
        return self._found or (self._step(self._seen), None)

    async def _walk(self) -> None:
        for stored in self._ahead:
            self._seen = stored.stream_version
            if self._subscription in self._dispatcher.interested(stored.name, stored.version):
                self._found = await self._stop_at(Place.of(stored))
                if self._found is not None:
                    return
        await self._look()

    async def _look(self) -> None:
        self._ahead = await self._dispatcher.load(
            self._job.stream, after=self._seen, limit=PAGE, connection=self._connection
        )

    async def _stop_at(self, place: Place) -> tuple[Step, NewJob | None] | None:
        """Go on with this event; ``None``: it has been dealt with before."""
        new = self._dispatcher.job(self._subscription, place, catches_up=self._job.catches_up)
        present = await self._dispatcher.find_job(new.id) if self._job.catches_up else None
        step = self._step(place.stream_version, new.id)
        if present is None:
            return step, msgspec.structs.replace(new, line=None)
        return None if present.state in _PASSED else (step, None)

    def _step(self, stream_version: int, following: JobId | None = None) -> Step:
        return Step(self._subscription.subscriber.name, self._job.stream, stream_version, following)
