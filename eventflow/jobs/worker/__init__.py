"""The worker and its services."""

from eventflow.jobs.worker.lease import Heartbeat, InProcessPresence, Lease, Presence, Wake
from eventflow.jobs.worker.settings import WorkerSettings
from eventflow.jobs.worker.worker import Worker

__all__ = ["Heartbeat", "InProcessPresence", "Lease", "Presence", "Wake", "Worker", "WorkerSettings"]
