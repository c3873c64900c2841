"""An application with a job that kills its process."""

import os
import signal

import anyio.lowlevel

from eventflow import EventFlow, Job, JobContext

flow = EventFlow("killer")


@flow.job
class Kill(Job):
    """Ends the process as the kernel does when memory is short."""

    async def execute(self, context: JobContext) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@flow.job
class Quick(Job):
    """Does nothing, in good order."""

    async def execute(self, context: JobContext) -> None:
        await anyio.lowlevel.checkpoint()
