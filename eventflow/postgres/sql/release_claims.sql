-- Let all jobs of a closed worker wait again, ready now, their attempts given back.
--   $1 worker_id uuid, $2 crashed boolean (it died: counted, and noted with the attempt)
-- Returns one row: released, the number of jobs.
WITH ended AS (
    DELETE FROM eventflow.running WHERE worker_id = $1 RETURNING *
), signals AS (
    DELETE FROM eventflow.signal WHERE worker_id = $1
), waiting AS (
    INSERT INTO eventflow.job (
        id, queue_id, lane, priority, due_at, ready_at, expires_at, created_at, name, version, payload, headers, tags,
        aggregate_id, key, batch_id, retry, timeout_us, attempt, crashes, claim_no, past_attempts
    )
    SELECT
        id, queue_id, lane, priority, due_at, greatest(due_at, clock_timestamp()), expires_at, created_at, name,
        version, payload, headers, tags, aggregate_id, key, batch_id, retry, timeout_us, attempt - 1,
        crashes + ($2::boolean)::integer, claim_no,
        CASE WHEN NOT $2::boolean THEN past_attempts ELSE
            coalesce(past_attempts, '[]') || jsonb_build_object(
                'attempt', attempt, 'worker', worker_id, 'started_at', claimed_at, 'ended_at', clock_timestamp(),
                'outcome', 'worker_died', 'error', NULL)
        END
    FROM ended
    RETURNING id
)
SELECT count(*) AS released FROM waiting;
