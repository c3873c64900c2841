"""The command line; needs the extra ``cli``."""

import sys

__all__ = ["main"]

_EXTRA = ("cyclopts", "rich")


def main() -> None:
    """Run the ``eventflow`` command and exit with its code."""
    try:
        from eventflow.cli.app import run
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in _EXTRA:
            raise
        print("The command line needs an extra: pip install 'eventflow-py[cli]'", file=sys.stderr)
        sys.exit(2)
    sys.exit(run(sys.argv[1:]))
