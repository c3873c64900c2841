"""The demo's worker process: runs jobs until its standard input is closed, and so no longer than the demo."""

import sys

import anyio

from eventflow import WorkerSettings
from eventflow.demo.flow import flow


async def work() -> None:
    """Run jobs until told to stop."""
    async with flow.open() as app, app.worker(WorkerSettings(grace_period=1.0)):
        await anyio.wait_readable(sys.stdin)


if __name__ == "__main__":
    anyio.run(work)
