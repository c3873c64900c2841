"""What the tests of commands share."""

from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import asyncpg
import pytest

from eventflow.postgres import Connection
from tests.acceptance.cli.command_line import SHOP, CommandLine
from tests.support.postgres import PASSWORD


@pytest.fixture
def cli(tmp_path: Path, dsn: str) -> Generator[CommandLine]:
    """The command line on this test's database. What it said holds no password, whatever it was."""
    commands = CommandLine(tmp_path, dsn)
    commands.write("shop", SHOP)
    yield commands
    for process in commands.processes:
        process.process.kill()
        process.process.wait()
    for process in commands.processes:
        assert PASSWORD not in process.out + process.err
        assert dsn not in process.out + process.err


@pytest.fixture
async def admin(admin_dsn: str) -> AsyncGenerator[Connection]:
    """A superuser's connection to this test's database."""
    connection = await asyncpg.connect(admin_dsn)
    yield connection
    await connection.close()
