"""The demo's SQL, one file each."""

from functools import cache
from importlib.resources import files


@cache
def statement(name: str) -> str:
    """The text of ``sql/<name>.sql``."""
    return files("eventflow.demo").joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")
