-- Give a waiting job another due time; ask the worker of a claimed one.
--   $1 id uuid, $2 at_us bigint, $3 delay_us bigint (from now; one of the two is null)
-- Returns one row: rescheduled, requested. Neither: as with cancel_job.
WITH due AS MATERIALIZED (
    SELECT CASE
        WHEN $2::bigint IS NOT NULL THEN timestamptz 'epoch' + $2 * interval '1 microsecond'
        ELSE clock_timestamp() + $3::bigint * interval '1 microsecond'
    END AS at
), rescheduled AS (
    -- Where it was put aside it would not be claimed ahead of its new time; a suspect never is.
    UPDATE eventflow.job SET due_at = due.at, ready_at = greatest(due.at, clock_timestamp()),
        parked = CASE WHEN parked = 'suspect' THEN parked END
    FROM due WHERE job.id = $1
    RETURNING job.id
), requested AS (
    INSERT INTO eventflow.signal (worker_id, job_id, claim_no, kind, due_at)
    SELECT r.worker_id, r.id, r.claim_no, 'reschedule', due.at
    -- The lock waits for a completion under way; if that wins, there is nobody to ask.
    FROM (SELECT * FROM eventflow.running WHERE id = $1 FOR KEY SHARE) AS r CROSS JOIN due
    ON CONFLICT (worker_id, job_id, kind) DO UPDATE SET claim_no = excluded.claim_no, due_at = excluded.due_at
    RETURNING job_id
)
SELECT EXISTS (SELECT FROM rescheduled) AS rescheduled, EXISTS (SELECT FROM requested) AS requested;
