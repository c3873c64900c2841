"""What a claim costs while many other jobs wait."""

import time

from benchmarks.suite.measures.figures import FIRST_SECONDS, LIMIT_SECONDS, LOOK_SECONDS, Figures, until_started
from benchmarks.suite.stage import ContestantError, Stage

FEW = 10_000
KNOWN, UNKNOWN = "Tick", "Tock"
AUTOVACUUM = "ALTER TABLE eventflow.job SET (autovacuum_enabled = {})"
FILL = """
INSERT INTO eventflow.job (id, queue_id, due_at, ready_at, name, version, payload, parked)
SELECT ($1 || lpad(to_hex(n), 24, '0'))::uuid, q.id, d.due, d.due, $2, 1, '{"number":-2}', $5
FROM eventflow.queue AS q, generate_series(1, $3::bigint) AS n, LATERAL (
    SELECT now() + $4 * interval '1 hour' + n * interval '1 microsecond' AS due
) AS d
WHERE q.name = 'default'
"""
CLAIMS = """
SELECT sum(s.total_exec_time)::float8 AS milliseconds, sum(s.rows)::float8 AS jobs,
    sum(s.shared_blks_hit + s.shared_blks_read)::float8 AS pages
FROM pg_stat_statements AS s JOIN pg_database AS d ON d.oid = s.dbid
WHERE d.datname = current_database()
    AND (s.query LIKE '%eventflow.claim_jobs(%' OR s.query LIKE '%INSERT INTO eventflow.running%')
"""
"""Ours, and what raw does instead; statements within functions are not listed."""


async def deep_backlog(stage: Stage, *, waiting: int = FEW, unknown: int = 0, aside: bool = False,
                       analyzed: bool = True, jobs: int = 50_000, turns: str = "fmmffm") -> Figures:  # fmt: skip
    """
    No-op jobs for one worker, beside 10,000 others and beside many; of each the quickest turn.

    Args:
        waiting: The others: half of them due, behind those that are looked at, half scheduled.
        unknown: Due jobs before all others, that the worker does not know.
        aside: Whether these have been put aside already; else the worker has to do that.
        analyzed: Whether the table has statistics of its rows, or those of an empty table.
        jobs: That are started in each turn.
        turns: ``f`` beside few, ``m`` beside many, ``+`` once more beside the same many, as they were left.
    """
    found: dict[str, list[Figures]] = {"few": [], "many": []}
    for turn in turns:
        if turn == "f":
            await _fill(stage, jobs, FEW)
        elif turn == "m":
            await _fill(stage, jobs, waiting, unknown=unknown, aside=aside, analyzed=analyzed)
        found["few" if turn == "f" else "many"].append(await _drained(stage, jobs))
    few, many = (min(side, key=lambda turn: turn["claim_us"]) for side in found.values())
    return {
        **{f"few_{name}": value for name, value in few.items()},
        **{f"many_{name}": value for name, value in many.items()},
        "claim_cost": many["claim_us"] / few["claim_us"],
        "drain_cost": few["per_second"] / many["per_second"],
    }


async def _fill(stage: Stage, jobs: int, others: int, *, unknown: int = 0, aside: bool = False,
                analyzed: bool = True) -> None:  # fmt: skip
    # Ids are the same in each round: in the history they must not be found again.
    await stage.database.execute("TRUNCATE eventflow.job, eventflow.running, eventflow.job_history")
    await stage.database.execute(AUTOVACUUM.format("on" if analyzed else "off"))
    await stage.database.execute("VACUUM ANALYZE")
    for prefix, name, count, hours, parked in (
        ("00000001", UNKNOWN, unknown, -2, "unknown" if aside else None),
        ("00000002", KNOWN, jobs + others // 2, -1, None),
        ("00000003", KNOWN, others // 2, 24, None),
    ):
        await stage.database.execute(FILL, prefix, name, count, hours, parked)
    if analyzed:
        await stage.database.execute("VACUUM ANALYZE")
    await stage.database.execute("CHECKPOINT")


async def _drained(stage: Stage, jobs: int) -> Figures:
    """The rate from the first start on; the server's time for claiming a job, and the pages that it looked at."""
    await stage.forget_statements()
    async with stage.workers(begin=False) as [worker]:
        worker.begin()
        await until_started([worker], 1, seconds=FIRST_SECONDS, every=LOOK_SECONDS)
        began = time.monotonic()
        await until_started([worker], jobs, seconds=LIMIT_SECONDS, every=LOOK_SECONDS)
        rate = worker.started / (time.monotonic() - began)
    claims = await stage.database.fetchrow(CLAIMS)
    if claims is None or not claims["jobs"]:
        raise ContestantError("nothing was claimed")
    return {
        "per_second": rate,
        "claim_us": 1000 * claims["milliseconds"] / claims["jobs"],
        "claim_pages": claims["pages"] / claims["jobs"],
    }
