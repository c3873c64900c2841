"""What users would pick instead, each in its fastest documented configuration."""

from benchmarks.contestants.entry import Entry

PSYCOPG = "psycopg[binary,pool]==3.3.9"
NOT_DURABLE = "nothing is durable: this Redis keeps nothing on disk"
AWA_UNFINISHED = """
SELECT (SELECT count(*) FROM awa.deferred_jobs)
    + (SELECT coalesce(sum(awa.sequence_next_value(seq_name) - 1), 0) FROM awa.queue_enqueue_heads)
    - (SELECT coalesce(sum(completed_count), 0) FROM awa.receipt_completion_batches)
    - (SELECT count(*) FROM awa.done_entries)
    - (SELECT coalesce(sum(pruned_completed_count), 0) FROM awa.queue_terminal_rollups)
"""
"""All that were enqueued but those it has completed: its own view of states is slow to count."""

PEERS: tuple[Entry, ...] = (
    Entry(
        "PgQueuer",
        "benchmarks.peers.pgqueuer:Way",
        ("pgqueuer[asyncpg]==1.6.0", "asyncpg==0.32.0"),
        "batch_size=1000 (its default, 10, is much slower); workers on a pool of 4 to 8 connections, producers on one:"
        " its inserts notify, so they commit one by one; durability durable, as it comes;"
        " a QueueManager alone, as nothing recurs",
        "SELECT count(*) FROM pgqueuer",
        backlog=80_000,
        caveat="a delayed job starts up to 0.1 s late; a job that fails is not tried again unless its handler asks",
    ),
    Entry(
        "Procrastinate",
        "benchmarks.peers.procrastinate:Way",
        ("procrastinate==3.10.0", PSYCOPG),
        "concurrency 20, delete_jobs=always; a pool of its user's, 12 connections for a worker and 20 for producers,"
        " autocommit and without the test before each use; else as it comes",
        "SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')",
        backlog=4000,
        bulk=50_000,
        caveat="delayed jobs are looked for every 5 s, as it comes; claims one job at a time",
    ),
    Entry(
        "Oban",
        "benchmarks.peers.oban:Way",
        ("oban==0.7.0",),
        "queue limit 1,000 (200 is half as fast), pool of 10; bulk by enqueue_many; jobs kept for a day",
        "SELECT count(*) FROM oban_jobs WHERE state IN ('available', 'scheduled', 'executing', 'retryable')",
        backlog=20_000,
        bulk=50_000,
        python=(3, 12),
        caveat="delayed jobs become available once a second, and are noticed up to a second after that",
    ),
    Entry(
        "DBOS",
        "benchmarks.peers.dbos:Way",
        ("dbos==3.4.0",),
        "worker_concurrency 200, polled each 0.05 s (1 s by default); bulk by enqueue_in_transaction, 1,000 in each",
        "SELECT count(*) FROM dbos.workflow_status WHERE status IN ('ENQUEUED', 'PENDING', 'DELAYED')",
        backlog=3_000,
        bulk=20_000,
        caveat="polls; delayed workflows are enqueued once a second",
    ),
    Entry(
        "Chancy",
        "benchmarks.peers.chancy:Way",
        ("chancy==0.26.0", "psycopg[binary]==3.3.9"),
        "AsyncExecutor, concurrency 500, eager polling, polled each second, outcomes written each 0.1 s (1 s by"
        " default); of its plugins only leadership and recovery; bulk by push_many",
        "SELECT count(*) FROM chancy_jobs WHERE state IN ('pending', 'running', 'retrying')",
        backlog=20_000,
        bulk=50_000,
        caveat="nothing wakes it for delayed jobs: it polls each second",
    ),
    Entry(
        "awa",
        "benchmarks.peers.awa:Way",
        ("awa-pg==0.6.9",),
        "one queue, max_workers 1,024 as its guide says for no-op jobs; bulk by enqueue_many_copy",
        AWA_UNFINISHED,
        backlog=30_000,
        caveat="written in Rust: only handlers are Python; completed jobs are kept for seconds; delayed jobs are looked"
        " for each 0.25 s, and of 4,000 that are due at once none starts; single enqueues of a queue wait for each"
        " other",
    ),
    Entry(
        "SAQ",
        "benchmarks.peers.saq_postgres:Way",
        ("saq[postgres]==0.26.4", PSYCOPG),
        "concurrency 100, ttl=-1: a finished job is deleted; a pool of its user's, 4 to 40 connections for a worker and"
        " 20 for producers, without the test before each use; bulk: 20 callers, it has no other way",
        "SELECT count(*) FROM saq_jobs WHERE status IN ('new', 'deferred', 'queued', 'active')",
        backlog=5000,
        bulk=20_000,
        caveat="due times are whole seconds, here the next, and are looked for every second",
    ),
    Entry(
        "SAQ on Redis",
        "benchmarks.peers.saq_redis:Way",
        ("saq[hiredis,redis]==0.26.4", "typing_extensions==4.16.0"),
        "concurrency 50, ttl=-1: a finished job is deleted; hiredis; bulk: 20 callers, it has no other way",
        None,
        backlog=10_000,
        bulk=30_000,
        server="redis",
        repeats=1,
        caveat=f"{NOT_DURABLE}; due times are whole seconds, here the next, and are looked for every second",
    ),
    Entry(
        "arq on Redis",
        "benchmarks.peers.arq:Way",
        ("arq==0.28.0",),
        "max_jobs=500, keep_result=0: no results; poll_delay=0.02 instead of 0.5 s, as a job waits for the next poll;"
        " bulk: 20 callers, it has no other way",
        None,
        backlog=10_000,
        bulk=30_000,
        server="redis",
        repeats=1,
        caveat=f"{NOT_DURABLE}; polls, by default so that a job waits 0.25 s",
    ),
)
