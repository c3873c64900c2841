"""``python -m reliability.rig.producer``: makes the calls that come in as JSON lines, until there are no more."""

import asyncio
import logging
import os
import sys
import time

import anyio
import msgspec
from anyio.abc import TaskGroup

from eventflow import DatabaseUnavailableError, JobId
from reliability.asking import Producer
from reliability.history import Asked
from reliability.rig.application import Diary, diary_of_this_process, flow
from reliability.scenario import Ask

READY = b"ready\n"


async def produce() -> None:
    """Open the application as soon as there is a database, and make calls at once when they are asked for."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    diary, job_ids = diary_of_this_process(), dict[int, JobId]()
    while True:
        try:
            async with flow.open() as app, anyio.create_task_group() as calls:
                os.write(sys.stdout.fileno(), READY)
                await _take(reader, Producer(app, anyio.sleep, job_ids), diary, calls)
        except DatabaseUnavailableError:
            await anyio.sleep(0.1)
        else:
            return


async def _take(reader: asyncio.StreamReader, producer: Producer, diary: Diary, calls: TaskGroup) -> None:
    while line := await reader.readline():
        calls.start_soon(_make, producer, msgspec.json.decode(line, type=Ask), diary)


async def _make(producer: Producer, ask: Ask, diary: Diary) -> None:
    answer, job_id = await producer.make(ask)
    if ask.what not in ("cancel", "move"):
        diary.note(Asked(time.monotonic(), diary.name, ask.number, answer, job_id))


if __name__ == "__main__":
    logging.basicConfig()
    asyncio.run(produce())
