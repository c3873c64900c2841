"""Jobs: defining, scheduling, running and keeping them."""

from eventflow.ids import JobId
from eventflow.jobs.definitions import JobDefinitions
from eventflow.jobs.encoder import JobEncoder
from eventflow.jobs.in_memory import InMemoryJobStore
from eventflow.jobs.in_memory_commits import InMemoryCommits
from eventflow.jobs.in_memory_scheduler import InMemoryJobScheduler
from eventflow.jobs.instant import InstantCommits, InstantJobScheduler
from eventflow.jobs.job import Job, JobContext, JobOptions, job_version
from eventflow.jobs.publish_command import PublishCommandJob
from eventflow.jobs.records import (
    CancelOutcome,
    ClaimBatch,
    ClaimedJob,
    Ending,
    Interest,
    JobRecord,
    JobState,
    Line,
    NewJob,
    Outcome,
    Peer,
    RescheduleOutcome,
    Settlement,
    Signal,
    Tick,
    WorkerRecord,
)
from eventflow.jobs.runner import JobRunner
from eventflow.jobs.scheduler import JobScheduler, Notify, StoreJobScheduler, SupportsExecute
from eventflow.jobs.store import JobStore
from eventflow.jobs.unit_of_work import Commits, JobUnitOfWork, Transactions, UnitsOfWork, nothing_of
from eventflow.jobs.worker import Worker, WorkerSettings

__all__ = [
    "CancelOutcome",
    "ClaimBatch",
    "ClaimedJob",
    "Commits",
    "Ending",
    "InMemoryCommits",
    "InMemoryJobScheduler",
    "InMemoryJobStore",
    "InstantCommits",
    "InstantJobScheduler",
    "Interest",
    "Job",
    "JobContext",
    "JobDefinitions",
    "JobEncoder",
    "JobId",
    "JobOptions",
    "JobRecord",
    "JobRunner",
    "JobScheduler",
    "JobState",
    "JobStore",
    "JobUnitOfWork",
    "Line",
    "NewJob",
    "Notify",
    "Outcome",
    "Peer",
    "PublishCommandJob",
    "RescheduleOutcome",
    "Settlement",
    "Signal",
    "StoreJobScheduler",
    "SupportsExecute",
    "Tick",
    "Transactions",
    "UnitsOfWork",
    "Worker",
    "WorkerRecord",
    "WorkerSettings",
    "job_version",
    "nothing_of",
]
