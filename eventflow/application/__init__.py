"""Puts an application together and opens it."""

from eventflow.application.app import App, Commands
from eventflow.application.flow import EventFlow, Lifespan
from eventflow.application.model import Model

__all__ = ["App", "Commands", "EventFlow", "Lifespan", "Model"]
