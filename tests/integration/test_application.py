"""The application around the jobs: services, included flows, stored versions, and its life without a database."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from eventflow import (
    AnyCommand,
    CommandContext,
    EventFlow,
    Job,
    JobContext,
    JobId,
    JobState,
    RetryPolicy,
    ServiceNotFoundError,
    Services,
    StandaloneCommand,
    command_version,
    job_version,
)
from eventflow.commands import CallNext
from tests.support.journal import Journal, Note, ended, flow_of, query


class Mailer:
    """A service of the process."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.open = True


class Session:
    """A service of one run."""

    def __init__(self) -> None:
        self.closed = False


class Sessions(list[Session]):
    """All that were used."""


class Mail(Job):
    """Uses both."""

    to: str

    async def execute(self, context: JobContext) -> None:
        mailer, sessions = await context.services.aget(Mailer), await context.services.aget(Sessions)
        session = await context.services.aget(Session)
        assert mailer.open
        assert session is await context.services.aget(Session)
        assert not session.closed
        sessions.append(session)
        mailer.sent.append(self.to)


class Missing(Job):
    """Asks for what nobody registered."""

    async def execute(self, context: JobContext) -> None:
        await context.services.aget(Journal)


async def test_services_live_as_long_as_they_should(dsn: str) -> None:
    """The lifespan's for the process, a factory's for one run, closed after it."""
    mailer, sessions = Mailer(), Sessions()

    @asynccontextmanager
    async def lifespan(services: Services) -> AsyncGenerator[None]:
        @asynccontextmanager
        async def session() -> AsyncGenerator[Session]:
            made = Session()
            yield made
            made.closed = True

        services.register_value(Mailer, mailer)
        services.register_value(Sessions, sessions)
        services.register_factory(Session, session)
        yield
        mailer.open = False

    flow = EventFlow("mail", lifespan=lifespan)
    flow.add_jobs(Mail)
    async with flow.open(dsn) as app, app.worker():
        for to in ("a", "b"):
            await ended(app, await app.jobs.schedule(Mail(to=to)))
        assert mailer.open

    assert (mailer.sent, mailer.open) == (["a", "b"], False)
    assert len({id(session) for session in sessions}) == 2
    assert all(session.closed for session in sessions)


async def test_missing_service_fails_the_job(dsn: str) -> None:
    """With an error that names it."""
    flow = EventFlow("empty")
    flow.job(retry=RetryPolicy(max_attempts=1))(Missing)
    async with flow.open(dsn) as app, app.worker():
        record = await ended(app, await app.jobs.schedule(Missing()))

    assert record.state is JobState.DEAD
    assert record.error is not None
    assert ServiceNotFoundError.__name__ in record.error["type"]
    assert "Journal" in record.error["message"]


async def test_included_flows_are_part_of_the_application(dsn: str, journal: Journal) -> None:
    """Their jobs run, and their lifespans are entered, each once."""
    entered: list[str] = []

    def flow_named(name: str) -> EventFlow:
        @asynccontextmanager
        async def lifespan(services: Services) -> AsyncGenerator[None]:
            entered.append(name)
            yield
            entered.append(f"{name} left")

        return EventFlow(name, lifespan=lifespan)

    shop, billing, shared = flow_named("shop"), flow_named("billing"), flow_named("shared")
    shared.include(flow_of(journal))
    billing.include(shared)
    shop.include(billing)
    shop.include(shared)
    async with shop.open(dsn) as app, app.worker():
        await ended(app, await app.jobs.schedule(Note(label="included")))

    assert journal.labels() == ["included"]
    assert entered == ["shop", "billing", "shared", "shared left", "billing left", "shop left"]


@job_version("Remind", 1, aliases=["Reminder"])
class RemindV1(Job):
    """What was stored first."""

    address: str

    async def execute(self, context: JobContext) -> None:
        raise AssertionError("an old version never runs")


@job_version("Remind", 2)
class RemindV2(Job):
    """In between."""

    to: str

    async def execute(self, context: JobContext) -> None:
        raise AssertionError("an old version never runs")


@job_version("Remind", 3)
class Remind(Job):
    """What runs today."""

    to: list[str]

    async def execute(self, context: JobContext) -> None:
        await (await context.services.aget(Journal)).note(context, ",".join(self.to))


def remind_to(old: RemindV1) -> RemindV2:
    """From 1 to 2."""
    return RemindV2(to=old.address)


def remind_many(old: RemindV2) -> Remind:
    """From 2 to 3."""
    if old.to == "nobody":
        raise ValueError("nobody to remind")
    return Remind(to=[old.to])


@command_version("Close", 2)
class Close(StandaloneCommand):
    """Today's."""

    reason: str


@command_version("Close", 1)
class CloseV1(StandaloneCommand):
    """Yesterday's."""


def give_reason(old: CloseV1) -> Close:
    """From 1 to 2; the source id is kept by itself."""
    return Close(reason="unknown")


async def test_stored_jobs_of_earlier_versions_run(dsn: str, journal: Journal) -> None:
    """Rows under every former version and name are upgraded step by step; what cannot be is a dead letter."""
    flow = flow_of(journal)
    flow.add_jobs(Remind)
    flow.upgrader(remind_many)
    flow.upgrader(remind_to)
    rows = [
        ("Remind", 1, '{"address": "first"}'),
        ("Reminder", 1, '{"address": "alias"}'),
        ("Remind", 2, '{"to": "second"}'),
        ("Remind", 3, '{"to": ["third", "fourth"]}'),
        ("Remind", 2, '{"to": "nobody"}'),
    ]
    async with flow.open(dsn) as app, app.worker():
        ids: list[JobId] = []
        for row in rows:
            [stored] = await query(dsn, "SELECT eventflow.schedule_job($1, $2, $3)::text AS id", *row)
            ids.append(JobId.of(stored["id"]))
        records = [await ended(app, job_id) for job_id in ids]

    assert sorted(journal.labels()) == ["alias", "first", "second", "third,fourth"]
    assert records[-1].state is JobState.DEAD
    assert (records[0].name, records[0].version) == ("Remind", 1)


async def test_stored_commands_of_earlier_versions_are_published(dsn: str) -> None:
    """Upgraded, with the source id they were stored with; middleware goes around them as around any."""
    flow, seen = EventFlow("shop"), list[tuple[str, str]]()

    async def close(command: Close, context: CommandContext) -> None:
        seen.append((command.reason, context.source_id))

    async def watch(command: AnyCommand[Any], context: CommandContext, call_next: CallNext) -> Any:
        seen.append(("before", command.source_id))
        return await call_next(command)

    flow.command_handler(close)
    flow.upgrader(give_reason)
    flow.middleware(watch)
    async with flow.open(dsn) as app, app.worker():
        await query(
            dsn, "SELECT eventflow.schedule_job('PublishCommand:Close', 1, '{\"source_id\": \"command-stored\"}')"
        )
        [record] = await app.jobs.find()
        assert (await ended(app, record.id)).state is JobState.SUCCEEDED

    assert seen == [("before", "command-stored"), ("unknown", "command-stored")]
