"""What tests of poison share: odd jobs and JSON, tables without checks, a look at all jobs in every way there is."""

import json
from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from eventflow import App, Job, JobContext, JobId
from eventflow.cli.exits import ExitCode
from eventflow.cli.jobs import JobCommands
from eventflow.cli.terminal import Terminal
from tests.support.journal import query


class Carry(Job):
    """Carries a value, and does nothing."""

    anything: Any = None

    async def execute(self, context: JobContext) -> None:
        pass


class Fussy(Job):
    """Reads itself in a way that ends the process."""

    label: str = ""

    def __post_init__(self) -> None:
        if self.label == "exit":
            raise SystemExit(3)

    async def execute(self, context: JobContext) -> None:
        pass


def digits(count: int) -> str:
    """SQL of a payload with a number of so many digits."""
    return f"""('{{"anything": ' || repeat('9', {count}) || '}}')::json"""


def levels(count: int) -> str:
    """SQL of JSON that is so many levels deep."""
    return f"""('{{"anything": ' || repeat('[', {count}) || repeat(']', {count}) || '}}')::json"""


async def all_can_be_seen(app: App, dsn: str, ids: Sequence[JobId], capsys: pytest.CaptureFixture[str]) -> None:
    """By the API, and in the lists of the command line."""
    assert {record.id for record in await app.jobs.find(limit=1000)} >= set(ids)
    for job_id in ids:
        assert await app.jobs.get(job_id) is not None
    await anyio.to_thread.run_sync(lists, dsn)
    _, _, listed = capsys.readouterr().out.rpartition("\n[\n")
    assert {job["id"] for job in json.loads(f"[{listed}")} >= set(ids)


def lists(dsn: str) -> None:
    """What ``eventflow jobs list`` says to people, then to scripts."""
    for json_wanted in (False, True):
        commands = JobCommands(dsn, "eventflow", terminal=Terminal(), json=json_wanted)
        assert commands.list(state=None, queue=None, name=None, limit=1000) is ExitCode.DONE


async def drop_checks(admin_dsn: str) -> None:
    """Let any value into the waiting jobs."""
    rows = await query(
        admin_dsn,
        "SELECT format('ALTER TABLE eventflow.job DROP CONSTRAINT %I', conname) AS drop"
        " FROM pg_constraint WHERE conrelid = 'eventflow.job'::regclass AND contype = 'c'",
    )
    for row in rows:
        await query(admin_dsn, row["drop"])
