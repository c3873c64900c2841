"""From a job or command and its options to what is stored."""

from collections.abc import Callable, Iterable, Sequence

import msgspec
from typing_extensions import Unpack

from eventflow.clock import to_microseconds
from eventflow.commands import Causation, aggregate_id_of, is_command
from eventflow.errors import InvalidScheduleError
from eventflow.eventstore import Deadline
from eventflow.ids import JobId
from eventflow.jobs.definitions import JobDefinitions
from eventflow.jobs.headers import Headers
from eventflow.jobs.job import Job
from eventflow.jobs.publish_command import PublishCommandJob
from eventflow.jobs.records import NewJob
from eventflow.messages import Message
from eventflow.scheduling import Due, ScheduleOptions, check_priority, check_retry, check_text, check_timeout, due_of
from eventflow.serialization import encode_plain

_OPTIONS = frozenset(ScheduleOptions.__annotations__)


class _Asked(msgspec.Struct, frozen=True):
    """The options of a call, checked; ``None``: as the job's type says."""

    due: Due
    queue: str | None
    priority: int | None
    key: str | None
    tags: tuple[str, ...]
    retry: bytes | None
    timeout_us: int | None


class JobEncoder:
    """
    Checks and encodes; everything wrong with a call to ``schedule`` is found here, before anything is written.

    Args:
        definitions: The jobs and commands that may be scheduled.
        new_id: Makes job ids.
    """

    def __init__(self, definitions: JobDefinitions, new_id: Callable[[], JobId] = JobId.new) -> None:
        self._definitions = definitions
        self._new_id = new_id

    def encode(
        self,
        message: Message,
        cause: Causation | None = None,
        *,
        deadline: Deadline | None = None,
        job_id: JobId | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> NewJob:
        """
        The stored form of a job, or of the job that publishes a command.

        Args:
            message: The job or command.
            cause: What it follows from; ``None``: a story begins with it.
            deadline: The deadline that it is.
            job_id: Its identity, if it has one already.
            **options: See :class:`~eventflow.scheduling.ScheduleOptions`.

        Raises:
            UnknownJobDefinitionError: the type is not registered.
            InvalidMessageError: a field would not survive JSON, or the message is too large.
            InvalidScheduleError: an option makes no sense.
        """
        return self._stored(message, _asked(options), cause, deadline, job_id)

    def encode_all(self, messages: Iterable[Message], **options: Unpack[ScheduleOptions]) -> list[NewJob]:
        """The stored forms of many, with the same options; see :meth:`encode`."""
        asked = _asked(options)
        return [self._stored(message, asked, None, None, None) for message in messages]

    def _stored(
        self,
        message: Message,
        asked: _Asked,
        cause: Causation | None,
        deadline: Deadline | None,
        job_id: JobId | None,
    ) -> NewJob:
        job = as_job(message)
        defaults = self._definitions.options_of(job)
        job_id = job_id or self._new_id()
        name, version, payload = self._definitions.encode(job)
        cause = cause or Causation(job_id, job_id)
        aggregate_id = aggregate_id_of(job.command) if isinstance(job, PublishCommandJob) else None
        return NewJob(
            id=job_id,
            name=name,
            version=version,
            payload=payload,
            queue=defaults.queue if asked.queue is None else asked.queue,
            priority=defaults.priority if asked.priority is None else asked.priority,
            due=asked.due,
            headers=encode_plain(Headers.of(cause, deadline)),
            key=asked.key,
            tags=asked.tags,
            aggregate_id=None if aggregate_id is None else str.__str__(aggregate_id),
            retry=asked.retry,
            timeout_us=asked.timeout_us,
        )


def _asked(options: ScheduleOptions) -> _Asked:
    unknown = options.keys() - _OPTIONS
    if unknown:  # a misspelt delay= must not run the job now
        raise InvalidScheduleError(f"unknown options: {', '.join(sorted(unknown))}")
    queue, priority, key = options.get("queue"), options.get("priority"), options.get("key")
    timeout, retry = check_timeout(options.get("timeout")), options.get("retry")
    return _Asked(
        due=due_of(options.get("at"), options.get("delay")),
        queue=None if queue is None else check_text("queue", queue, 100),
        priority=None if priority is None else check_priority(priority),
        key=None if key is None else check_text("key", key, 200),
        tags=_checked_tags(options.get("tags", ())),
        retry=None if retry is None else encode_plain(check_retry(retry).to_stored()),
        timeout_us=None if timeout is None else to_microseconds(timeout),
    )


def as_job(message: Message) -> Job:
    """A job as it is, a command in the job that publishes it."""
    if isinstance(message, Job):
        return message
    if is_command(message):
        return PublishCommandJob.create(message)
    raise InvalidScheduleError(f"only jobs and commands can be scheduled, not {message!r}")


def _checked_tags(tags: Sequence[str]) -> tuple[str, ...]:
    if isinstance(tags, str):
        raise InvalidScheduleError(f"tags={tags!r}: give a list of texts")
    if len(tags) > 50:
        raise InvalidScheduleError(f"{len(tags)} tags: at most 50")
    return tuple(check_text("tags", tag, 100) for tag in tags)
