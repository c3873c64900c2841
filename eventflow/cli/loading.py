"""Finds the application that a command line names."""

import importlib
import sys
from pathlib import Path
from types import TracebackType

from eventflow.application import EventFlow
from eventflow.cli.exits import UsageError
from eventflow.errors import EventFlowError


class FlowImportError(EventFlowError, ImportError):
    """The application's module failed while it was imported; the cause says how."""

    def __init__(self, module: str, error: BaseException) -> None:
        super().__init__(module, error)
        self.module = module
        self.error = error

    def __str__(self) -> str:
        return f"importing {self.module} failed: {type(self.error).__name__}: {self.error}"

    @property
    def where(self) -> TracebackType | None:
        """The traceback from the application's own code on."""
        trace = self.error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename in (__file__, importlib.__file__, *_IMPORTLIB):
            trace = trace.tb_next
        return trace


_IMPORTLIB = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")


def load_flow(target: str, app_dir: Path) -> EventFlow:
    """
    The :class:`EventFlow` that ``MODULE:FLOW`` names.

    Args:
        target: A module, a colon, and the name in it; dots lead into objects.
        app_dir: Where modules are looked for first.

    Raises:
        UsageError: there is no such module or name, or it is not an EventFlow.
        FlowImportError: the module itself failed.
    """
    module_name, colon, path = target.partition(":")
    if not (module_name and colon and path):
        raise UsageError(f"{target!r} does not name a flow; say MODULE:FLOW, for example shop.app:flow")
    if not app_dir.is_dir():
        raise UsageError(f"--app-dir {app_dir} is not a directory")
    sys.path.insert(0, str(app_dir.resolve()))
    found = _import(module_name, app_dir)
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise UsageError(f"{module_name} has no {path!r}{_instead(module_name)}") from None
    if not isinstance(found, EventFlow):
        raise UsageError(f"{target} is not an EventFlow but {_described(found)}{_instead(module_name)}")
    return found


def _import(name: str, app_dir: Path) -> object:
    try:
        return importlib.import_module(name)
    except EventFlowError:
        raise  # says by itself which definition is wrong
    except Exception as exc:
        if isinstance(exc, ModuleNotFoundError) and exc.name and f"{name}.".startswith(f"{exc.name}."):
            raise UsageError(f"no module {exc.name!r} in {app_dir.resolve()} or among the installed packages") from None
        raise FlowImportError(name, exc) from exc


def _instead(module_name: str) -> str:
    names = [name for name, value in vars(sys.modules[module_name]).items() if isinstance(value, EventFlow)]
    return f"; it has {', '.join(f'{module_name}:{name}' for name in names)}" if names else ""


def _described(value: object) -> str:
    return f"the class {value.__qualname__}" if isinstance(value, type) else f"of type {type(value).__qualname__}"
