"""``eventflow subscribers``: catch those up that were added later."""

import asyncio
from pathlib import Path

from eventflow.application import EventFlow
from eventflow.cli.exits import ExitCode
from eventflow.cli.loading import load_flow
from eventflow.cli.terminal import Terminal


def catch_up(target: str, name: str, dsn: str, schema: str, *, app_dir: Path, terminal: Terminal) -> ExitCode:
    """Give a subscriber the jobs of the events before it was there."""
    asyncio.run(_catch_up(load_flow(target, app_dir), name, dsn, schema, terminal))
    return ExitCode.DONE


async def _catch_up(flow: EventFlow, name: str, dsn: str, schema: str, terminal: Terminal) -> None:
    async with flow.open(dsn, schema=schema) as app:
        async for progress in app.catch_up(name):
            terminal.note(f"{progress.events_read} events read, {progress.jobs_made} jobs made")
    terminal.result(f"{name} is caught up")
