"""The SQL, one statement per file, for one schema."""

import re
from functools import cache
from importlib.resources import files

DEFAULT_SCHEMA = "eventflow"
_SCHEMA_NAME = re.compile(r"[a-z_][a-z0-9_]{0,47}")
_DEFAULT_IN_SQL = re.compile(r"\beventflow(?![a-z0-9])")


def check_schema(schema: str) -> str:
    """Refuse a schema name that is not 1 to 48 of ``a-z``, ``0-9`` and ``_``, starting with no digit."""
    if not _SCHEMA_NAME.fullmatch(schema):
        raise ValueError(f"schema {schema!r}: 1 to 48 of a-z, 0-9 and _, not starting with a digit")
    return schema


@cache
def statement(name: str, schema: str = DEFAULT_SCHEMA) -> str:
    """
    The statement in ``sql/<name>.sql``, with the schema's name in place of the default one.

    Nothing else is ever substituted.

    >>> statement("select_schema_version", "orders").splitlines()[-1]
    'SELECT max(version) AS version FROM orders.migration;'
    """
    return load_sql("sql", name, schema)


def load_sql(folder: str, name: str, schema: str) -> str:
    """A packaged .sql file for a schema, whose name has been checked."""
    text = files("eventflow.postgres").joinpath(folder, f"{name}.sql").read_text(encoding="utf-8")
    return text if schema == DEFAULT_SCHEMA else _DEFAULT_IN_SQL.sub(check_schema(schema), text)
