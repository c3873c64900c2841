-- End claims whose jobs will not run again, fenced by worker and claim number.
--   $1 worker_id uuid, pairwise arrays: $2 ids uuid[], $3 claim_nos integer[], $4 states text[] (of job_history),
--   $5 started_us bigint[], $6 retention_days integer[] (0: not kept), $7 errors text[] (JSON or null)
-- Returns the ids that were still this worker's; of the others nothing is changed.
-- A job whose day has no partition is not kept: making one is maintain_history()'s, and completion never waits.
WITH given AS MATERIALIZED (
    SELECT * FROM unnest(
        $2::uuid[], $3::integer[], $4::text[], $5::bigint[], $6::integer[], $7::text[]
    ) AS g (id, claim_no, state, started_us, retention_days, error)
), days AS MATERIALIZED (
    SELECT d.retention_days, d.expires_on FROM (
        SELECT DISTINCT retention_days, (statement_timestamp() AT TIME ZONE 'UTC')::date + retention_days AS expires_on
        FROM given WHERE retention_days > 0
    ) AS d WHERE eventflow.history_partition(d.expires_on) IS NOT NULL
), ended AS (
    -- By an array, not a join, whose order would be free: on a small table the plan would turn round.
    DELETE FROM eventflow.running AS r
    WHERE r.worker_id = $1 AND r.id = ANY (ARRAY(
        SELECT g.id FROM given AS g CROSS JOIN LATERAL (
            SELECT FROM eventflow.running AS x WHERE x.id = g.id AND x.claim_no = g.claim_no OFFSET 0
        ) AS held
    ))
    RETURNING r.*
), kept AS (
    INSERT INTO eventflow.job_history (
        id, expires_on, state, queue_id, priority, due_at, created_at, name, version, payload, headers, tags,
        aggregate_id, key, batch_id, attempt, crashes, claim_no, past_attempts, worker_id, started_at, finished_at
    )
    SELECT
        e.id, days.expires_on, g.state, e.queue_id, e.priority, e.due_at, e.created_at, e.name, e.version, e.payload,
        e.headers, e.tags, e.aggregate_id, e.key, e.batch_id, e.attempt, e.crashes, e.claim_no,
        CASE WHEN g.error IS NULL THEN e.past_attempts ELSE
            CASE jsonb_typeof(e.past_attempts)
                WHEN 'array' THEN CASE WHEN jsonb_array_length(e.past_attempts) < 20
                    THEN e.past_attempts ELSE e.past_attempts - 5 END  -- the first 5 and the last 15 are kept
                ELSE '[]'  -- none, or what somebody wrote by hand
            END || jsonb_build_object(
                'attempt', e.attempt, 'worker', e.worker_id,
                'started_at', timestamptz 'epoch' + g.started_us * interval '1 microsecond',
                'ended_at', statement_timestamp(), 'outcome', g.state, 'error', g.error::jsonb)
        END,
        e.worker_id, timestamptz 'epoch' + g.started_us * interval '1 microsecond', statement_timestamp()
    FROM ended AS e JOIN given AS g USING (id) JOIN days USING (retention_days)
), answered AS (
    DELETE FROM eventflow.signal WHERE worker_id = $1 AND job_id IN (SELECT id FROM ended)
)
SELECT id FROM ended;
