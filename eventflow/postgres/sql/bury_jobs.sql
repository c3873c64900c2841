-- End claims whose jobs become dead letters, fenced by worker and claim number.
--   $1 worker_id uuid, pairwise arrays: $2 ids uuid[], $3 claim_nos integer[], $4 reasons text[],
--   $5 started_us bigint[], $6 errors text[] (JSON or null)
-- Returns the ids that were still this worker's; of the others nothing is changed.
WITH given AS MATERIALIZED (
    SELECT * FROM unnest($2::uuid[], $3::integer[], $4::text[], $5::bigint[], $6::text[])
        AS g (id, claim_no, reason, started_us, error)
), ended AS (
    -- By an array, not a join, whose order would be free: on a small table the plan would turn round.
    DELETE FROM eventflow.running AS r
    WHERE r.worker_id = $1 AND r.id = ANY (ARRAY(
        SELECT g.id FROM given AS g CROSS JOIN LATERAL (
            SELECT FROM eventflow.running AS x WHERE x.id = g.id AND x.claim_no = g.claim_no OFFSET 0
        ) AS held
    ))
    RETURNING r.*
), buried AS (
    INSERT INTO eventflow.dead_letter (
        id, died_at, reason, error, queue_id, lane, priority, due_at, created_at, name, version, payload, headers,
        tags, aggregate_id, key, batch_id, retry, timeout_us, attempt, crashes, claim_no, past_attempts, worker_id
    )
    SELECT
        e.id, statement_timestamp(), g.reason, g.error::json, e.queue_id, e.lane, e.priority, e.due_at, e.created_at,
        e.name, e.version, e.payload, e.headers, e.tags, e.aggregate_id, e.key, e.batch_id, e.retry, e.timeout_us,
        e.attempt, e.crashes, e.claim_no,
        -- What is in there may be what the store refused.
        CASE WHEN g.reason = 'refused_by_store' THEN e.past_attempts ELSE
            CASE jsonb_typeof(e.past_attempts)
                WHEN 'array' THEN CASE WHEN jsonb_array_length(e.past_attempts) < 20
                    THEN e.past_attempts ELSE e.past_attempts - 5 END  -- the first 5 and the last 15 are kept
                ELSE '[]'  -- none, or what somebody wrote by hand
            END || jsonb_build_object(
                'attempt', e.attempt, 'worker', e.worker_id,
                'started_at', timestamptz 'epoch' + g.started_us * interval '1 microsecond',
                'ended_at', statement_timestamp(), 'outcome', 'dead', 'error', g.error::jsonb)
        END,
        e.worker_id
    FROM ended AS e JOIN given AS g USING (id)
    ON CONFLICT (id) DO NOTHING  -- a client used the id of a dead letter for another job
), answered AS (
    DELETE FROM eventflow.signal WHERE worker_id = $1 AND job_id IN (SELECT id FROM ended)
)
SELECT id FROM ended;
