"""
Which shape should a claim have: move the job to another table, or mark it where it is?

    python -m benchmarks.claim_shapes                     # starts a Postgres of its own, about 3 minutes
    python -m benchmarks.claim_shapes --dsn 'postgresql:///postgres?host=/run/postgresql'

- A moves the row: the claim deletes it from `job` and inserts it into `running`.
- B updates it in place: the claim index leaves out rows that have a worker.
- B2 is B with an index on the worker, which rescue needs there.

Every cell drains a table of ready jobs, a batch at a time: claim it, then complete it, each statement a
durable commit of its own. Each connection has a process of its own, so that no shape is held back by one
Python interpreter. Repeats are interleaved, and ratios taken within one: whatever else the machine does
meets all shapes alike.

The second table asks how the statements should find their rows, with plans pinned or left to the planner,
prepared while the table was full or still empty, as by a worker that starts before there is work. Rows are
found by a join with their ids, or by an array of their ids or ctids, which leaves no join order to choose.

The server gets a scratch database, dropped at the end, and the roles of the migrations.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from multiprocessing import get_context
from multiprocessing.managers import SyncManager
from pathlib import Path
from statistics import median
from threading import Barrier
from typing import Literal
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
from uuid_utils.compat import uuid7

from eventflow.devdb import EmbeddedPostgres

MIGRATIONS = Path(__file__).parents[1] / "eventflow" / "postgres" / "migrations"
DATABASE = "eventflow_claim_shapes"
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
STATEMENT_JOBS = 4_000  # the second table's: what a flipped plan costs grows with the table

# Durable, and without what would meet one cell and spare the next.
SERVER_SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "30min",
    "autovacuum": "off",
}
# Leaves no choice but of the join order, and of that only where a statement has a join.
PINNED = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}

# The tables of "update in place": the columns and indexes of `job`, and who holds the row.
IN_PLACE = """
CREATE SCHEMA {schema};
CREATE TABLE {schema}.job (LIKE eventflow.job INCLUDING ALL EXCLUDING INDEXES, PRIMARY KEY (id));
ALTER TABLE {schema}.job ADD worker_id uuid, ADD claimed_at timestamptz;
CREATE INDEX ON {schema}.job (queue_id, lane, priority, ready_at, id)
    WHERE parked IS NULL AND worker_id IS NULL;
"""
INDEX_FOR_RESCUE = "CREATE INDEX ON {schema}.job (worker_id) WHERE worker_id IS NOT NULL;"

CARRIED = """queue_id, lane, priority, due_at, ready_at, expires_at, created_at, name, version, payload,
    headers, tags, aggregate_id, key, batch_id, retry, timeout_us, crashes, past_attempts"""
RETURNED = f"id, claim_no, attempt, {CARRIED}"

# All claims: $1 worker_id uuid, $2 batch_size integer, $3 lower_bound timestamptz. They return the claimed
# jobs, earliest first.
READY = """ready AS (
    SELECT {column} FROM {table}
    WHERE queue_id = 1 AND lane = 0 AND priority = 1 AND parked IS NULL {unclaimed}
      AND ready_at >= $3 AND ready_at <= statement_timestamp()
    ORDER BY ready_at, id LIMIT $2
    FOR UPDATE SKIP LOCKED
)"""
MOVE = """WITH {ready}, claimed AS (
    DELETE FROM eventflow.job {found} RETURNING job.*
), moved AS (
    INSERT INTO eventflow.running (id, worker_id, claimed_at, claim_no, attempt, {carried})
    SELECT id, $1, statement_timestamp(), claim_no + 1, attempt + 1, {carried} FROM claimed
    RETURNING *
)
SELECT {returned} FROM moved ORDER BY ready_at, id"""
UPDATE = """WITH {ready}, claimed AS (
    UPDATE {table} AS job
    SET worker_id = $1, claimed_at = statement_timestamp(), claim_no = claim_no + 1, attempt = attempt + 1
    {found} RETURNING job.*
)
SELECT {returned} FROM claimed ORDER BY ready_at, id"""

# All completions: $1 ids uuid[], $2 claim_nos integer[], $3 worker_id uuid. They return the ids they ended.
DELETE = """DELETE FROM {table} AS held {found} RETURNING held.id"""
DELETE_WITH_HISTORY = """WITH done AS (
    DELETE FROM {table} AS held {found} RETURNING held.*
)
INSERT INTO eventflow.job_history (id, expires_on, state, worker_id, started_at, finished_at, queue_id,
    priority, due_at, created_at, name, version, payload, headers, tags, aggregate_id, key, batch_id, attempt,
    crashes, claim_no, past_attempts)
SELECT id, (statement_timestamp() AT TIME ZONE 'UTC')::date + 1, 'succeeded', worker_id, claimed_at,
    statement_timestamp(), queue_id, priority, due_at, created_at, name, version, payload, headers, tags,
    aggregate_id, key, batch_id, attempt, crashes, claim_no, past_attempts
FROM done RETURNING id"""
ENDED_BY_JOIN = """USING unnest($1::uuid[], $2::integer[]) AS ended(id, claim_no)
    WHERE held.id = ended.id AND held.claim_no = ended.claim_no AND held.worker_id = $3"""
# OFFSET 0 keeps the fence out of the look-up, so that only the primary key can serve it.
ENDED_BY_ARRAY = """WHERE held.{column} = ANY (ARRAY(
        SELECT own.{column} FROM unnest($1::uuid[], $2::integer[]) AS ended(id, claim_no)
        CROSS JOIN LATERAL (
            SELECT id, ctid, claim_no, worker_id FROM {table} WHERE id = ended.id OFFSET 0
        ) AS own
        WHERE own.claim_no = ended.claim_no AND own.worker_id = $3
    ))"""

# How a statement finds the rows it changes: joined by id, or by an array of ids or of ctids.
Find = Literal["join", "ids", "ctids"]
FINDS: tuple[Find, ...] = ("join", "ids", "ctids")
TABLES = {"A": "eventflow", "B": "in_place", "B2": "in_place_indexed"}  # schemas, by the name of the shape


@dataclass(frozen=True)
class Shape:
    """A claim and its completion, and the tables they work on, of which the first is filled."""

    name: str
    history: bool
    claim: str
    complete: str
    tables: tuple[str, ...]


def shape(name: str, *, find: Find = "ids", history: bool = False) -> Shape:
    """The statements of A, B or B2."""
    moves = name == "A"
    table = f"{TABLES[name]}.job"
    held_in = "eventflow.running" if moves else table
    column = "ctid" if find == "ctids" else "id"
    found = f"WHERE job.{column} = ANY (ARRAY(SELECT {column} FROM ready))"
    ended = ENDED_BY_ARRAY.format(column=column, table=held_in)
    if find == "join":
        found = f"{'USING' if moves else 'FROM'} ready WHERE job.id = ready.id"
        ended = ENDED_BY_JOIN
    ready = READY.format(column=column, table=table, unclaimed="" if moves else "AND worker_id IS NULL")
    claim = MOVE if moves else UPDATE
    complete = DELETE_WITH_HISTORY if history else DELETE
    return Shape(
        name=name,
        history=history,
        claim=claim.format(ready=ready, table=table, found=found, carried=CARRIED, returned=RETURNED),
        complete=complete.format(table=held_in, found=ended),
        tables=(table, held_in) if moves else (table,),
    )


@dataclass(frozen=True)
class Drained:
    """What one connection did. Instants are of the monotonic clock, which processes share."""

    jobs: int
    started_at: float
    ended_at: float
    client_cpu_seconds: float


@dataclass(frozen=True)
class Cell:
    """One drain of a full table."""

    shape: str
    history: bool
    batch_size: int
    connections: int
    jobs_per_second: float
    wal_bytes_per_job: float
    dead_tuples_per_job: float
    client_cpu_share: float  # of the connections' time; the rest is the server's
    load_average: float


@dataclass(frozen=True)
class Statements:
    """What a claim and a completion took under one plan."""

    shape: str
    find: Find
    planner: str
    prepared_on: str
    claim_milliseconds: float
    complete_milliseconds: float


async def drain(dsn: str, shape: Shape, batch_size: int, starting_line: Barrier) -> Drained:
    """Claim a batch, complete it, until no job is left."""
    connection = await asyncpg.connect(dsn, server_settings=PINNED)
    worker_id, lower_bound, jobs = uuid4(), LONG_AGO, 0
    claim, complete = await connection.prepare(shape.claim), await connection.prepare(shape.complete)
    starting_line.wait(timeout=60)
    started_at, cpu_before = time.monotonic(), time.process_time()
    while claimed := await claim.fetch(worker_id, batch_size, lower_bound):
        lower_bound = claimed[-1]["ready_at"]  # nothing earlier comes back: no claim is released here
        ids, claim_nos = [row["id"] for row in claimed], [row["claim_no"] for row in claimed]
        ended = await complete.fetch(ids, claim_nos, worker_id)
        if len(ended) != len(claimed):
            raise RuntimeError(f"{shape.name}: claimed {len(claimed)} jobs, completed {len(ended)}")
        jobs += len(claimed)
    ended_at, client_cpu_seconds = time.monotonic(), time.process_time() - cpu_before
    await connection.execute("SELECT pg_stat_force_next_flush()")
    await connection.close()
    return Drained(jobs, started_at, ended_at, client_cpu_seconds)


def drain_in_process(dsn: str, shape: Shape, batch_size: int, starting_line: Barrier) -> Drained:
    """:func:`drain`, for an executor."""
    return asyncio.run(drain(dsn, shape, batch_size, starting_line))


class Bench:
    """Fills and drains the tables of one scratch database."""

    def __init__(self, dsn: str, connection: asyncpg.Connection, options: argparse.Namespace) -> None:
        self._dsn = dsn
        self._connection = connection
        self._checkpoint: bool = options.checkpoint
        payload = json.dumps({"text": os.urandom(options.payload_bytes).hex()[: options.payload_bytes - 12]})
        an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
        instants = [an_hour_ago + timedelta(microseconds=50 * number) for number in range(options.jobs)]
        self._rows = [(uuid7(), 1, at, at, at, "SendReminder", 1, payload) for at in instants]

    async def drained(
        self, executor: Executor, manager: SyncManager, shape: Shape, batch_size: int, connections: int
    ) -> Cell:
        """Drain a freshly filled table over so many connections, each in a process of its own."""
        await self._prepare(shape, len(self._rows))
        if self._checkpoint:
            await self._connection.execute("CHECKPOINT")
        wal_before = await self._connection.fetchval("SELECT pg_current_wal_lsn()")
        loop, starting_line = asyncio.get_running_loop(), manager.Barrier(connections)
        call = (self._dsn, shape, batch_size, starting_line)
        done = await asyncio.gather(
            *(loop.run_in_executor(executor, drain_in_process, *call) for _ in range(connections))
        )
        [[wal_bytes, dead_tuples]] = await self._connection.fetch(
            """SELECT (pg_current_wal_lsn() - $1::pg_lsn)::float,
                      sum(pg_stat_get_dead_tuples(name::regclass))::float
               FROM unnest($2::text[]) AS name""",
            wal_before,
            shape.tables,
        )
        jobs = sum(each.jobs for each in done)
        if jobs != len(self._rows):
            raise RuntimeError(f"{shape.name}: {jobs} jobs of {len(self._rows)} ran")
        seconds = max(each.ended_at for each in done) - min(each.started_at for each in done)
        return Cell(
            shape=shape.name,
            history=shape.history,
            batch_size=batch_size,
            connections=connections,
            jobs_per_second=jobs / seconds,
            wal_bytes_per_job=wal_bytes / jobs,
            dead_tuples_per_job=dead_tuples / jobs,
            client_cpu_share=sum(each.client_cpu_seconds for each in done) / seconds / connections,
            load_average=os.getloadavg()[0],
        )

    async def timed(self, name: str, find: Find, planner: str, prepared_on: str) -> Statements:
        """Claim all jobs over one connection, then complete them, in batches of 100."""
        under_test, jobs = shape(name, find=find), min(STATEMENT_JOBS, len(self._rows))
        await self._prepare(under_test, jobs if prepared_on == "full" else 0)
        connection = await asyncpg.connect(self._dsn, server_settings=PINNED if planner == "pinned" else {})
        claim = await connection.prepare(under_test.claim)
        complete = await connection.prepare(under_test.complete)
        worker_id, lower_bound = uuid4(), LONG_AGO
        if prepared_on == "empty":
            for _ in range(6):  # from the sixth on, a generic plan is kept
                await claim.fetch(worker_id, 100, lower_bound)
                await complete.fetch([], [], worker_id)
            await self._fill(under_test, jobs)
        batches: list[tuple[list[object], list[object]]] = []
        started_at = time.monotonic()
        while claimed := await claim.fetch(worker_id, 100, lower_bound):
            lower_bound = claimed[-1]["ready_at"]
            batches.append(([row["id"] for row in claimed], [row["claim_no"] for row in claimed]))
        claimed_at = time.monotonic()
        for ids, claim_nos in batches:
            await complete.fetch(ids, claim_nos, worker_id)
        completed_at = time.monotonic()
        await connection.close()
        return Statements(
            shape=name,
            find=find,
            planner=planner,
            prepared_on=prepared_on,
            claim_milliseconds=1000 * (claimed_at - started_at) / len(batches),
            complete_milliseconds=1000 * (completed_at - claimed_at) / len(batches),
        )

    async def _prepare(self, shape: Shape, jobs: int) -> None:
        await self._connection.execute(f"TRUNCATE {', '.join(shape.tables)}, eventflow.job_history")
        await self._fill(shape, jobs)
        await self._connection.execute(f"VACUUM ANALYZE {', '.join(shape.tables)}")

    async def _fill(self, shape: Shape, jobs: int) -> None:
        schema, table = shape.tables[0].split(".")
        columns = ["id", "queue_id", "due_at", "ready_at", "created_at", "name", "version", "payload"]
        await self._connection.copy_records_to_table(
            table, schema_name=schema, columns=columns, records=self._rows[:jobs]
        )


@asynccontextmanager
async def scratch_database(server: str) -> AsyncGenerator[tuple[str, asyncpg.Connection]]:
    """A database with the tables of every shape."""
    admin = await asyncpg.connect(server)
    await admin.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
    await admin.execute(f"CREATE DATABASE {DATABASE}")
    dsn = urlsplit(server)._replace(path=f"/{DATABASE}").geturl()
    connection = await asyncpg.connect(dsn)
    try:
        for migration in sorted(MIGRATIONS.glob("*.sql")):
            await connection.execute(migration.read_text())
        await connection.execute(IN_PLACE.format(schema=TABLES["B"]))
        await connection.execute((IN_PLACE + INDEX_FOR_RESCUE).format(schema=TABLES["B2"]))
        yield dsn, connection
    finally:
        await connection.close()
        await admin.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")
        await admin.close()


@dataclass(frozen=True)
class Measured:
    """Both tables, and what they were measured with."""

    options: dict[str, object]
    server: dict[str, str]
    cpus: int | None
    cells: list[Cell]
    statements: list[Statements]


async def measure(server: str, options: argparse.Namespace) -> Measured:
    """Every cell of both tables, so many times."""
    cells: list[Cell] = []
    statements: list[Statements] = []
    kinds = product(options.batches, options.connections, (False, True), TABLES)
    drains = [(shape(name, history=history), batch, count) for batch, count, history, name in kinds]
    plans = list(product(("A", "B2"), FINDS, ("pinned", "planner"), ("full", "empty")))
    spawn = get_context("spawn")
    with spawn.Manager() as manager, ProcessPoolExecutor(max(options.connections), spawn) as executor:
        async with scratch_database(server) as (dsn, connection):
            settings = await connection.fetch(
                "SELECT name, current_setting(name) AS value FROM unnest($1::text[]) AS name",
                ["server_version", *SERVER_SETTINGS],
            )
            bench = Bench(dsn, connection, options)
            await bench.drained(executor, manager, shape("A"), 500, max(options.connections))  # warms up
            for repeat in range(options.repeats):
                print(f"repeat {repeat + 1} of {options.repeats}", file=sys.stderr)
                for each, batch, count in drains if repeat % 2 else reversed(drains):
                    cells.append(await bench.drained(executor, manager, each, batch, count))
                for name, find, planner, prepared_on in plans:
                    statements.append(await bench.timed(name, find, planner, prepared_on))
    return Measured(
        options={name: value for name, value in vars(options).items() if name not in ("dsn", "json")},
        server={row["name"]: row["value"] for row in settings},
        cpus=os.cpu_count(),
        cells=cells,
        statements=statements,
    )


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def shapes_table(cells: Sequence[Cell]) -> str:
    """Thousands of jobs/s as median (lowest to highest), ratios within a repeat, and what a job cost."""
    kinds: dict[tuple[bool, int, int], dict[str, list[Cell]]] = {}
    for cell in cells:
        key = (cell.history, cell.batch_size, cell.connections)
        of = kinds.setdefault(key, {name: [] for name in TABLES})
        of[cell.shape].append(cell)
    rows: list[list[str]] = []
    all_ratios: dict[str, list[float]] = {"B": [], "B2": []}
    for (history, batch_size, connections), of in sorted(kinds.items()):
        row = ["yes" if history else "no", str(batch_size), str(connections)]
        speeds = {name: [cell.jobs_per_second / 1000 for cell in of[name]] for name in TABLES}
        row += [f"{median(s):.1f} ({min(s):.1f} to {max(s):.1f})" for s in speeds.values()]
        for name, ratios in all_ratios.items():
            to_a = [one / a for one, a in zip(speeds[name], speeds["A"], strict=True)]
            row.append(f"{median(to_a):.2f}")
            ratios.extend(to_a)
        row.append(" / ".join(f"{median(cell.wal_bytes_per_job for cell in of[name]):.0f}" for name in TABLES))
        row.append(" / ".join(f"{median(cell.dead_tuples_per_job for cell in of[name]):.1f}" for name in TABLES))
        rows.append(row)
    below = [f"{median(r):.2f}, slower in {sum(one < 1 for one in r)} of {len(r)}" for r in all_ratios.values()]
    rows.append(["all", "", "", "", "", "", *below, "", ""])
    speed = ["A, 1000 jobs/s", "B, 1000 jobs/s", "B2, 1000 jobs/s", "B : A", "B2 : A"]
    costs = ["WAL bytes per job, A / B / B2", "dead tuples per job"]
    return markdown(["history", "batch", "connections", *speed, *costs], rows)


def statements_table(statements: Sequence[Statements]) -> str:
    """Milliseconds per claim and per completion, as medians."""
    taken: dict[tuple[str, str], dict[str, list[Statements]]] = {}
    for each in statements:
        plans = taken.setdefault((each.shape, each.find), {})
        plans.setdefault(f"{each.planner}, {each.prepared_on}", []).append(each)
    rows: list[list[str]] = []
    for (name, find), plans in taken.items():
        claims = (median(each.claim_milliseconds for each in plan) for plan in plans.values())
        completions = (median(each.complete_milliseconds for each in plan) for plan in plans.values())
        rows.append([name, find, *(f"{a:.1f} / {b:.1f}" for a, b in zip(claims, completions, strict=True))])
    return markdown(["shape", "rows found by", *next(iter(taken.values()))], rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.claim_shapes")
    parser.add_argument("--dsn", help="a database of the server to measure; by default one of its own is started")
    parser.add_argument("--jobs", type=int, default=40_000, help="in each cell (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[100, 500])
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--payload-bytes", type=int, default=100)
    parser.add_argument("--checkpoint", action="store_true", help="before each cell: first changes log whole pages")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args()
    if options.dsn:
        measured = asyncio.run(measure(options.dsn, options))
    else:
        with (
            tempfile.TemporaryDirectory(prefix="claim-shapes-", dir="/var/tmp") as directory,  # /tmp may be memory
            EmbeddedPostgres(Path(directory, "postgres"), settings=SERVER_SETTINGS) as postgres,
        ):
            measured = asyncio.run(measure(postgres.dsn(), options))
    if options.json:
        options.json.write_text(json.dumps(asdict(measured), indent=1))
    loads = [cell.load_average for cell in measured.cells]
    print(", ".join(f"{name} {value}" for name, value in measured.server.items()))
    print(f"{measured.cpus} CPUs, load average {min(loads):.1f} to {max(loads):.1f}\n")
    print(shapes_table(measured.cells))
    print(f"\nms per claim / completion of 100 of {STATEMENT_JOBS:,} jobs, by plan and when it was prepared:\n")
    print(statements_table(measured.statements))


if __name__ == "__main__":
    main()
