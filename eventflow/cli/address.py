"""
Where the database is.

The address may hold a password, and every user of a machine can read the arguments of every process. So there is
no option that takes it: it comes from the environment or from a file.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from eventflow.cli.exits import UsageError
from eventflow.cli.terminal import Mask
from eventflow.postgres import DEFAULT_SCHEMA, check_schema

ADDRESS = "EVENTFLOW_DSN"
LISTEN_ADDRESS = "EVENTFLOW_LISTEN_DSN"
DATABASE = Group("Database", sort_key=10)


def _valid_schema(type_: Any, value: Any) -> None:  # noqa: ARG001 - cyclopts tells the type too
    check_schema(value)


Schema = Annotated[str, Parameter(validator=_valid_schema, group=DATABASE, help="Where the tables are.")]


@Parameter(name="*", group=DATABASE)
@dataclass(frozen=True, kw_only=True)
class DatabaseOptions:
    """The options of every command that needs the database."""

    dsn_file: Annotated[
        Path | None,
        Parameter(help=f"File with the address, postgresql://…; without it, {ADDRESS} holds the address."),
    ] = None
    schema: Schema = DEFAULT_SCHEMA

    def address(self, mask: Mask) -> str:
        """
        The address, hidden from now on.

        Raises:
            UsageError: there is none, or it is not one of Postgres.
        """
        dsn = read_address(ADDRESS, self.dsn_file, mask)
        if dsn is None:
            raise UsageError(f"no database: set {ADDRESS}=postgresql://…, or name a file that holds it with --dsn-file")
        return dsn


def read_address(variable: str, file: Path | None, mask: Mask) -> str | None:
    """
    The address in the file if one is named, else in the environment variable, hidden from now on.

    Raises:
        UsageError: the file cannot be read, or what is there is not an address of Postgres.
    """
    source = variable if file is None else str(file)
    try:
        dsn = os.environ.get(variable, "") if file is None else file.read_text().strip()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not text"
        raise UsageError(f"cannot read the address in {source}: {reason}") from exc
    if not dsn and file is None:
        return None
    mask.hide(dsn)
    if not dsn.startswith(("postgresql://", "postgres://")):
        raise UsageError(f"what {source} holds is not an address like postgresql://user@host:5432/database")
    return dsn
