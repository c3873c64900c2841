"""The README's example does what the README says, typed in as it stands."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.acceptance.workers import ROOT
from tests.support.waiting import until


async def test_readme_example_runs_as_shown(dsn: str, tmp_path: Path) -> None:
    """The program publishes, schedules and cancels; the worker tells subscribers and sends what mails are left."""
    [example] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
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
    [example] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    statements = [line for line in example.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(statements) <= 55
