"""From events to subscribers: which jobs follow from an append, and what such a job does."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from uuid import UUID

import msgspec

from eventflow.commands import Causation
from eventflow.errors import EventNotFoundError
from eventflow.eventstore import Changes, EventDefinitions, EventId, EventStore, Step, StoredEvent, StreamId
from eventflow.ids import JobId, deterministic_uuid
from eventflow.jobs import JobContext, JobEncoder, JobRecord, NewJob
from eventflow.subscribers.event_job import EventJob, EventJobRunner
from eventflow.subscribers.subscriber import Subscriber

SUBSCRIBERS_NAMESPACE = UUID("0d0a4a6e-5d0c-4c0e-9a5f-2f6d8f7f3b11")
"""Namespace of the ids of subscribers' jobs, so that one event makes one job for one subscriber, ever."""
PAGE = 100
"""Events read at once to find the next of a subscriber."""


FindJob = Callable[[JobId], Awaitable[JobRecord | None]]


class Subscription(msgspec.Struct, frozen=True):
    """A subscriber, and the type of its jobs."""

    subscriber: Subscriber
    job_type: type[EventJob]


class _Place(msgspec.Struct, frozen=True):
    """Which event a job is about."""

    stream: StreamId
    stream_version: int
    event_id: EventId
    name: str
    correlation_id: str | None

    @classmethod
    def of(cls, stored: StoredEvent) -> "_Place":
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
    """

    def __init__(
        self,
        subscriptions: Iterable[Subscription],
        *,
        definitions: EventDefinitions,
        events: EventStore,
        encoder: JobEncoder,
        find_job: FindJob,
    ) -> None:
        self._definitions = definitions
        self._events = events
        self._encoder = encoder
        self._find_job = find_job
        self._subscriptions = {subscription.job_type: subscription for subscription in subscriptions}
        self._wanted: dict[tuple[str, int], tuple[Subscription, ...]] = {}

    def follow(self, changes: Changes) -> Sequence[NewJob]:
        """The jobs that follow from an append: one for each event and subscriber."""
        if changes.stream is None or not self._subscriptions:
            return ()
        return [
            self.job(
                subscription, _Place(changes.stream, number, event.id, event.name, changes.metadata.correlation_id)
            )
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

    def job(self, subscription: Subscription, place: _Place) -> NewJob:
        """The job of one event for one subscriber; always the same id."""
        message = subscription.job_type(
            aggregate_name=place.stream.aggregate_name,
            aggregate_id=place.stream.aggregate_id,
            stream_version=place.stream_version,
            event=place.name,
        )
        subscriber = subscription.subscriber
        identity = f"{place.event_id}/{subscriber.name}".encode()
        job_id = JobId.of(str(deterministic_uuid(SUBSCRIBERS_NAMESPACE, identity)))
        new = self._encoder.encode(message, Causation(place.correlation_id or job_id, place.event_id), job_id=job_id)
        return msgspec.structs.replace(new, line=subscriber.name) if subscriber.is_ordered else new

    def job_of(self, subscription: Subscription, stored: StoredEvent) -> NewJob:
        """The job of a stored event for one subscriber."""
        return self.job(subscription, _Place.of(stored))

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
        stored = await self._events.load(job.stream, after=job.stream_version - 1, limit=1)
        if not stored:
            raise EventNotFoundError(job.stream, job.stream_version)
        if subscription.subscriber.is_ordered:
            context.unit.before_commit = lambda changes: self._step(subscription, job, context, changes)
        for recorded in self._definitions.read(stored[0]):
            if subscription.subscriber.wants(type(recorded.event)):
                await subscription.subscriber.handle(recorded, context)

    async def _step(self, subscription: Subscription, job: EventJob, context: JobContext, changes: Changes) -> Changes:
        """Go on to the next event of the stream, if there is one; whoever appends meanwhile waits for the answer."""
        catching_up = await context.unit.lock_line(subscription.subscriber.name, job.stream)
        following = await self._following(subscription, job, catching_up=catching_up)
        if following is not None:
            context.unit.add(following)
        step = Step(subscription.subscriber.name, job.stream, None if following is None else following.id)
        return msgspec.structs.replace(changes, step=step)

    async def _following(self, subscription: Subscription, job: EventJob, *, catching_up: bool) -> NewJob | None:
        """The job of the next event, which is the first in line; ``None``: there is none yet."""
        after = job.stream_version
        while page := await self._events.load(job.stream, after=after, limit=PAGE):
            for stored in page:
                if subscription in self.interested(stored.name, stored.version):
                    new = msgspec.structs.replace(self.job_of(subscription, stored), line=None)
                    if not (catching_up and await self._find_job(new.id)):
                        return new
            after = page[-1].stream_version
        return None
