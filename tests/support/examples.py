"""The Python examples of README and docs, run as a reader would: in order, each page a module."""

import ast
import inspect
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: str) -> list[str]:
    """The Python blocks of a page, in order; *page* is its path in the repository."""
    return [text for text, _ in _blocks(page)]


@contextmanager
def module(name: str) -> Generator[ModuleType]:
    """An empty module that can be imported while the block lasts."""
    made = ModuleType(name)
    if name in sys.modules:
        raise ImportError(f"{name!r} is a module already")
    sys.modules[name] = made
    try:
        yield made
    finally:
        del sys.modules[name]


async def run_page(page: str, into: ModuleType, **given: Any) -> None:
    """
    Run all blocks of a page in one module; a traceback points into the page.

    Args:
        page: Its path in the repository.
        into: Where its names end up.
        given: Names that the page takes for granted.
    """
    vars(into).update(given)
    for text, line in _blocks(page):
        code = _compiled(text, page, line)
        outcome = eval(code, vars(into))
        if code.co_flags & inspect.CO_COROUTINE:  # something is awaited at its top level
            await outcome


def _blocks(page: str) -> list[tuple[str, int]]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [(found[1], text.count("\n", 0, found.start(1))) for found in BLOCK.finditer(text)]


def _compiled(text: str, page: str, line: int) -> CodeType:
    code: CodeType = compile("\n" * line + text, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    return code
