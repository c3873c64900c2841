-- Claim jobs for one worker, which holds one lease for all of them: those that are ready, and ahead of time
-- those that will be soon.
--   $1 worker_id uuid, $2 queues text[] (null: all), $3 names text[] and $4 versions integer[] (what it can run,
--   pairwise), $5 ready integer and $6 ahead integer (most jobs of each), $7 horizon_us bigint
-- Returns at least one row, whose first columns are the same in all: now_us, open (false: the worker was closed,
-- nothing is claimed), split_us (what was ready by then counts as ready), next_us (the earliest job within two seconds
-- beyond the horizon, or null); then the claimed jobs, or nulls.
-- Walks job_ready_idx once per queue and priority. A range is only opened when those before it did not fill the
-- claim; a nested loop keeps their order, and the rows of a range come in the order of the index.
WITH me AS MATERIALIZED (
    -- Closing a worker takes this row FOR UPDATE: it waits for claims under way, and none follows.
    SELECT id FROM eventflow.worker WHERE id = $1 AND closed_at IS NULL FOR KEY SHARE
), known AS MATERIALIZED (
    SELECT name, version FROM unnest($3::text[], $4::integer[]) AS k (name, version)
), ranges AS MATERIALIZED (
    -- Queues of equal priority take turns at being first.
    SELECT q.id AS queue_id, p.priority::smallint AS priority
    FROM eventflow.queue AS q CROSS JOIN generate_series(0, 3) AS p (priority)
    WHERE ($2::text[] IS NULL OR q.name = ANY ($2::text[])) AND EXISTS (SELECT FROM me)
    ORDER BY p.priority, random()
), ready AS MATERIALIZED (
    SELECT j.id FROM ranges AS r CROSS JOIN LATERAL (
        SELECT w.id FROM eventflow.job AS w
        WHERE w.queue_id = r.queue_id AND w.lane = 0 AND w.priority = r.priority AND w.parked IS NULL
          AND w.ready_at <= statement_timestamp()  -- stable, so that it bounds the index scan
          AND (w.name, w.version) IN (SELECT k.name, k.version FROM known AS k)
        ORDER BY w.ready_at, w.id LIMIT $5
        FOR UPDATE SKIP LOCKED
    ) AS j LIMIT $5
), ahead AS MATERIALIZED (
    SELECT j.id FROM ranges AS r CROSS JOIN LATERAL (
        SELECT w.id FROM eventflow.job AS w
        WHERE w.queue_id = r.queue_id AND w.lane = 0 AND w.priority = r.priority AND w.parked IS NULL
          AND w.ready_at > statement_timestamp()
          AND w.ready_at <= statement_timestamp() + $7::bigint * interval '1 microsecond'
          AND (w.name, w.version) IN (SELECT k.name, k.version FROM known AS k)
        ORDER BY w.ready_at, w.id LIMIT $6
        FOR UPDATE SKIP LOCKED
    ) AS j LIMIT $6
), later AS (
    SELECT min(j.ready_at) AS ready_at FROM ranges AS r CROSS JOIN LATERAL (
        SELECT w.ready_at FROM eventflow.job AS w
        WHERE w.queue_id = r.queue_id AND w.lane = 0 AND w.priority = r.priority AND w.parked IS NULL
          AND w.ready_at > statement_timestamp() + $7::bigint * interval '1 microsecond'
          -- Later ones are the next tick's to see: what nobody here can run may wait there in great numbers.
          AND w.ready_at <= statement_timestamp() + $7::bigint * interval '1 microsecond' + interval '2 seconds'
          AND (w.name, w.version) IN (SELECT k.name, k.version FROM known AS k)
        ORDER BY w.ready_at, w.id LIMIT 1
    ) AS j
), claimed AS (
    -- By an array, not a join, whose order would be free. By id, not by ctid: that leaves out a row which changed
    -- between this statement's snapshot and its lock.
    DELETE FROM eventflow.job
    WHERE id = ANY (ARRAY(SELECT id FROM ready UNION ALL SELECT id FROM ahead))
    RETURNING *
), moved AS (
    INSERT INTO eventflow.running (
        id, worker_id, claimed_at, queue_id, lane, priority, due_at, ready_at, expires_at, created_at, name, version,
        payload, headers, tags, aggregate_id, key, batch_id, retry, timeout_us, attempt, crashes, claim_no,
        past_attempts
    )
    SELECT
        id, $1, statement_timestamp(), queue_id, lane, priority, due_at, ready_at, expires_at, created_at, name,
        version, payload, headers, tags, aggregate_id, key, batch_id, retry, timeout_us, attempt + 1, crashes,
        claim_no + 1, past_attempts
    FROM claimed
    RETURNING id, claim_no, attempt, crashes, due_at, ready_at, name, version, payload, headers, retry, timeout_us
)
SELECT
    (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us,
    EXISTS (SELECT FROM me) AS open,
    (extract(epoch FROM statement_timestamp()) * 1000000)::bigint AS split_us,
    (SELECT (extract(epoch FROM later.ready_at) * 1000000)::bigint FROM later) AS next_us,
    m.id, m.claim_no, m.attempt, m.crashes,
    (extract(epoch FROM m.due_at) * 1000000)::bigint AS due_us,
    (extract(epoch FROM m.ready_at) * 1000000)::bigint AS ready_us,
    m.name, m.version, m.payload::text AS payload, m.headers::text AS headers, m.retry::text AS retry, m.timeout_us
FROM (VALUES (true)) AS answer LEFT JOIN moved AS m ON true
ORDER BY m.ready_at, m.id;  -- RETURNING promises no order
