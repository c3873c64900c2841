-- Let all jobs of a closed worker wait again, ready now, their attempts given back; but those whose cancellation was
-- requested end.
--   $1 worker_id uuid, $2 crashed boolean (it died: counted, and noted with the attempt)
-- Returns one row: released, the number of jobs.
WITH ended AS (
    DELETE FROM eventflow.running WHERE worker_id = $1 RETURNING *
), answered AS (
    DELETE FROM eventflow.signal WHERE worker_id = $1 RETURNING job_id, claim_no, kind
), cancelled AS (
    -- Somebody was told that the job's end was requested: it does not wait again.
    INSERT INTO eventflow.job_history (
        id, expires_on, state, queue_id, priority, due_at, created_at, name, version, payload, headers, tags,
        aggregate_id, key, batch_id, attempt, crashes, claim_no, past_attempts, worker_id, finished_at
    )
    SELECT
        e.id, (statement_timestamp() AT TIME ZONE 'UTC')::date + 1, 'cancelled', e.queue_id, e.priority, e.due_at,
        e.created_at, e.name, e.version, e.payload, e.headers, e.tags, e.aggregate_id, e.key, e.batch_id, e.attempt,
        e.crashes, e.claim_no, e.past_attempts, e.worker_id, statement_timestamp()
    FROM ended AS e JOIN answered AS a ON a.job_id = e.id AND a.claim_no = e.claim_no AND a.kind = 'cancel'
    WHERE eventflow.history_partition((statement_timestamp() AT TIME ZONE 'UTC')::date + 1) IS NOT NULL
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
    FROM ended AS e
    WHERE NOT EXISTS (
        SELECT FROM answered AS a WHERE a.job_id = e.id AND a.claim_no = e.claim_no AND a.kind = 'cancel'
    )
    RETURNING id
)
SELECT count(*) AS released FROM ended;
