"""Schedules jobs in a process of its own: ``python -m tests.acceptance.producer COUNT``."""

import asyncio
import sys

from tests.acceptance.shop import Record, flow


async def main(count: int) -> None:
    async with flow.open() as app:
        await app.commands.schedule_many([Record(number=n) for n in range(count)])
        await asyncio.Event().wait()  # until it is killed: what follows the commit goes on behind the call


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
