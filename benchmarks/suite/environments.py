"""Each contestant's own environment, made by uv, outside of the project's lock."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.contestants.entry import ROOT, Entry

LOOP = "uvloop>=0.22"


class MissingError(Exception):
    """Something that a contestant needs is not on this machine; the text says what."""


class Environments:
    """
    Environments that are made when first asked for, and kept.

    Args:
        root: Where they are.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def python(self, entry: Entry) -> Path:
        """
        The interpreter that has what a contestant requires.

        Raises:
            MissingError: there is no interpreter that is new enough, or something cannot be installed.
        """
        return self.made((*entry.requirements, LOOP), entry.python)

    def made(self, requirements: tuple[str, ...], oldest: tuple[int, int] = (3, 11)) -> Path:
        """The interpreter of an environment that has just these; *oldest* may run it. Raises as above."""
        interpreter = _interpreter(oldest)
        key = hashlib.sha256(repr((interpreter, requirements)).encode()).hexdigest()[:12]
        place = self._root / key
        if not (place / "ready").exists():
            shutil.rmtree(place, ignore_errors=True)
            _uv("venv", "--python", interpreter, str(place))
            _uv("pip", "install", "--python", str(place / "bin/python"), *requirements)
            (place / "ready").touch()
        return place / "bin/python"


def _interpreter(oldest: tuple[int, int]) -> str:
    if sys.version_info >= oldest:
        return sys.executable
    wanted = ".".join(map(str, oldest))
    found = subprocess.run(
        [_uv_path(), "python", "find", "--no-python-downloads", f">={wanted}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if found.returncode == 0:
        return found.stdout.strip()
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    if others := sorted(pyenv.glob(f"versions/{wanted}.*/bin/python")):
        return str(others[-1])
    raise MissingError(f"Python {wanted} is not installed")


def _uv(*arguments: str) -> None:
    done = subprocess.run([_uv_path(), *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise MissingError(f"uv {' '.join(arguments)}: {done.stderr.strip()[-500:]}")


def _uv_path() -> str:
    return str(Path(sys.executable).with_name("uv"))
