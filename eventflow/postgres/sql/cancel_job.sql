-- Keep a job from running: a waiting one ends in the history, the worker of a claimed one is asked.
--   $1 id uuid
-- Returns one row: cancelled, requested. Cancelled jobs are kept for a day. Neither: the job has ended, never was, or
-- moved between the tables meanwhile; the caller asks again.
WITH cancelled AS (
    DELETE FROM eventflow.job WHERE id = $1 RETURNING *
), kept AS (
    INSERT INTO eventflow.job_history (
        id, expires_on, state, queue_id, priority, due_at, created_at, name, version, payload, headers, tags,
        aggregate_id, key, batch_id, attempt, crashes, claim_no, past_attempts, finished_at
    )
    SELECT
        id, (statement_timestamp() AT TIME ZONE 'UTC')::date + 1, 'cancelled', queue_id, priority, due_at, created_at,
        name, version, payload, headers, tags, aggregate_id, key, batch_id, attempt, crashes, claim_no, past_attempts,
        statement_timestamp()
    FROM cancelled
    WHERE eventflow.history_partition((statement_timestamp() AT TIME ZONE 'UTC')::date + 1) IS NOT NULL
    ON CONFLICT (id, expires_on) DO NOTHING  -- a client used the id of a job that ended today for another
), requested AS (
    INSERT INTO eventflow.signal (worker_id, job_id, claim_no, kind)
    SELECT r.worker_id, r.id, r.claim_no, 'cancel'
    -- The lock waits for a completion under way; if that wins, there is nobody to ask.
    FROM (SELECT * FROM eventflow.running WHERE id = $1 FOR KEY SHARE) AS r
    ON CONFLICT (worker_id, job_id, kind) DO UPDATE SET claim_no = excluded.claim_no
    RETURNING job_id
)
SELECT EXISTS (SELECT FROM cancelled) AS cancelled, EXISTS (SELECT FROM requested) AS requested;
