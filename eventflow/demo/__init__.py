"""The main job, shown: commands scheduled, their worker killed and started again, and what became of them counted."""

from eventflow.demo.errors import DemoError
from eventflow.demo.story import run_demo

__all__ = ["DemoError", "run_demo"]
