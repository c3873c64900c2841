"""What keeps the demo from showing anything."""

from eventflow.errors import EventFlowError


class DemoError(EventFlowError):
    """A process of the demo ended by itself or did not come up; the message holds the end of its log."""
