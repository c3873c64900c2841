"""The contestants."""

from benchmarks.contestants.entry import ROOT, Entry
from benchmarks.peers.catalogue import PEERS

EVENTFLOW_UNFINISHED = "SELECT (SELECT count(*) FROM eventflow.job) + (SELECT count(*) FROM eventflow.running)"
OWN = (f"--editable={ROOT}[cli,uvloop]",)
NOT_ABOUT_ENDS = frozenset({"enqueue", "bulk", "pickup", "idle", "lateness", "sustained"})
"""Measures in which neither what becomes of finished jobs nor the size of a backlog's batches plays a part."""

HERE = (
    Entry(
        "eventflow",
        "benchmarks.contestants.ours:Way",
        OWN,
        "as it comes: concurrency 100, jobs kept for a day",
        EVENTFLOW_UNFINISHED,
        backlog=100_000,
    ),
    Entry(
        "eventflow, not kept",
        "benchmarks.contestants.ours:NotKept",
        OWN,
        "the same with retention=0: a finished job leaves no row",
        EVENTFLOW_UNFINISHED,
        backlog=100_000,
        lacks=NOT_ABOUT_ENDS,
    ),
    Entry(
        "raw 100",
        "benchmarks.contestants.raw:Batches100",
        OWN,
        "hand-written asyncpg on eventflow's tables: fenced claim, then completion, one connection, batches of 100",
        EVENTFLOW_UNFINISHED,
        backlog=100_000,
        caveat="no retries, leases, delays, histories, handlers",
        lacks=frozenset({"lateness"}),
    ),
    Entry(
        "raw 1000",
        "benchmarks.contestants.raw:Batches1000",
        OWN,
        "the same, batches of 1,000",
        EVENTFLOW_UNFINISHED,
        backlog=100_000,
        caveat="no retries, leases, delays, histories, handlers",
        lacks=NOT_ABOUT_ENDS,
    ),
)
"""Eventflow, and what could be done by hand on its tables."""

CATALOGUE = (*HERE, *PEERS)
