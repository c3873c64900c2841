"""``eventflow trace``: what followed from what."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC
from random import Random

import msgspec
from rich.text import Text
from rich.tree import Tree

from eventflow.cli.exits import ExitCode
from eventflow.cli.terminal import Terminal, printable
from eventflow.clock import SystemClock
from eventflow.postgres import Link, PostgresDatabase


def trace(link_id: str, dsn: str, schema: str, *, terminal: Terminal, json: bool) -> ExitCode:
    """Show the story of a job, an event or a command."""
    links = asyncio.run(_find(link_id, dsn, schema))
    if not links:
        terminal.note(f"nothing is known of {printable(link_id)}: no job, event or command, or its history has expired")
        return ExitCode.NOT_FOUND
    if json:
        terminal.result(msgspec.json.format(msgspec.json.encode(links), indent=2).decode())
    else:
        for tree in story_trees(links, marked=link_id):
            terminal.console.print(tree)
    return ExitCode.DONE


def story_trees(links: Sequence[Link], *, marked: str = "") -> list[Tree]:
    """
    The links of a story, each under what caused it.

    Args:
        links: Oldest first.
        marked: Id of the one that was asked for.
    """
    known = {link.id for link in links}
    effects: defaultdict[str, list[Link]] = defaultdict(list)
    for link in links:
        cause = link.causation_id
        # A job that begins a story names itself; what caused a root is a direct caller, or not kept any more.
        effects[cause if cause in known and cause != link.id else f"root {cause}"].append(link)
    trees: list[Tree] = []
    for cause in [cause for cause in effects if cause.startswith("root ")]:
        source = cause.removeprefix("root ")
        if source in known or source == "None":
            trees += [_grow(Tree(_label(link, marked)), link, effects, marked) for link in effects[cause]]
        else:
            tree = Tree(Text(f"{printable(source)}  published directly, or not kept"))
            for link in effects[cause]:
                _grow(tree.add(_label(link, marked)), link, effects, marked)
            trees.append(tree)
    return trees


async def _find(link_id: str, dsn: str, schema: str) -> Sequence[Link]:
    async with PostgresDatabase.open(dsn, schema=schema, clock=SystemClock(), rng=Random()) as database:
        return await database.stories.find(link_id)


def _grow(tree: Tree, link: Link, effects: Mapping[str, Sequence[Link]], marked: str) -> Tree:
    for effect in effects.get(link.id, ()):
        _grow(tree.add(_label(effect, marked)), effect, effects, marked)
    return tree


def _label(link: Link, marked: str) -> Text:
    at = link.at.astimezone(UTC).isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")
    what = link.state if link.stream is None else printable(link.stream)
    text = Text(f"{printable(link.name)}  ", style="bold" if link.id == marked else "")
    text.append(f"{what}  ", style="cyan" if link.kind == "event" else "green")
    text.append(f"{at}  {link.id}", style="dim")
    return text
