"""What the suite knows of a contestant."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
REPEATS = 3
"""How often everybody plays, unless something says less."""


@dataclass(frozen=True)
class Entry:
    """
    A contestant, as the table shows it.

    Attributes:
        name: In results and on the command line.
        way: Its class, ``module:name``; imported in its own environment only.
        requirements: What is installed there.
        configuration: What differs from its defaults, and why it is fast so.
        unfinished: A query that counts the jobs whose end is not durable; ``None``: it has none, and the count of
            started jobs is all there is.
        backlog: Jobs for a drain by one worker, so that it takes some seconds.
        bulk: Jobs for bulk enqueue; slow ones get fewer.
        python: The oldest version it runs on.
        server: What it stands on.
        caveat: What it does less than the others.
        lacks: Measures it has no part in: it cannot, or would only repeat another's.
        repeats: How often it plays at most; once is enough for orientation.
    """

    name: str
    way: str
    requirements: tuple[str, ...]
    configuration: str
    unfinished: str | None
    backlog: int
    bulk: int = 100_000
    python: tuple[int, int] = (3, 11)
    server: str = "postgres"
    caveat: str = ""
    lacks: frozenset[str] = frozenset()
    repeats: int = REPEATS
