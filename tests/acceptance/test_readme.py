"""The README's example does what the README says, typed in as it stands; those of the pages in docs run after it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.examples import ROOT, blocks, module, run_page
from tests.support.waiting import until

PAGES = [page for page in sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")) if blocks(page)]


async def test_readme_example_runs_as_shown(dsn: str, tmp_path: Path) -> None:
    """The program publishes, schedules and cancels; the worker tells subscribers and sends what mails are left."""
    [example] = blocks("README.md")
    (tmp_path / "shop.py").write_text(example)
    output = tmp_path / "worker.out"
    environment = {**os.environ, "EVENTFLOW_DSN": dsn, "PYTHONUNBUFFERED": "1"}
    with output.open("wb") as stream:
        worker = subprocess.Popen(
            [sys.executable, "-m", "eventflow", "worker", "shop:flow"],
            cwd=tmp_path,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        program = subprocess.run(
            [sys.executable, "shop.py"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            check=False,
            text=True,
            timeout=30,
        )
        assert program.returncode == 0, program.stderr
        assert program.stdout == "placed: True, 1 event\n"
        for text in ("thank you for 4200 cents", "welcome"):
            await until(lambda text=text: f"mail: {text}, attempt 1" in output.read_text())
        assert "was not paid" not in output.read_text()
    finally:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=30) == 0


def test_readme_example_fits_on_a_page() -> None:
    """Simple to start: the example stays as short as it claims to be."""
    [example] = blocks("README.md")
    statements = [line for line in example.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(statements) <= 55


@pytest.mark.parametrize("page", PAGES)
async def test_examples_of_every_page_run(page: str, dsn: str) -> None:
    """As they stand, one after the other, against Postgres: after the README's, with its flow and an address."""
    with module("shop") as shop, module("page") as made:
        await run_page("README.md", shop)
        await run_page(page, made, flow=shop.flow, dsn=dsn)
        async with shop.flow.open(dsn):
            pass
