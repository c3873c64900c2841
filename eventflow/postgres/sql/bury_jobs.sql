-- End claims whose jobs become dead letters, fenced by worker and claim number.
--   $1 worker_id uuid, pairwise arrays: $2 ids uuid[], $3 claim_nos integer[], $4 reasons text[],
--   $5 started_us bigint[], $6 errors text[] (JSON or null)
-- Returns the ids that were still this worker's; of the others nothing is changed.
WITH given AS MATERIALIZED (
    SELECT * FROM unnest($2::uuid[], $3::integer[], $4::text[], $5::bigint[], $6::text[])
        AS g (id, claim_no, reason, started_us, error)
), ended AS (
    DELETE FROM eventflow.running AS r USING given AS g
    WHERE r.id = g.id AND r.claim_no = g.claim_no AND r.worker_id = $1
    RETURNING r.*, g.reason, g.started_us, g.error
), buried AS (
    INSERT INTO eventflow.dead_letter (
        id, died_at, reason, error, queue_id, lane, priority, due_at, created_at, name, version, payload, headers,
        tags, aggregate_id, key, batch_id, retry, timeout_us, attempt, crashes, claim_no, past_attempts, worker_id
    )
    SELECT
        id, statement_timestamp(), reason, error::json, queue_id, lane, priority, due_at, created_at, name, version,
        payload, headers, tags, aggregate_id, key, batch_id, retry, timeout_us, attempt, crashes, claim_no,
        coalesce(past_attempts, '[]') || jsonb_build_object(
            'attempt', attempt, 'worker', worker_id,
            'started_at', timestamptz 'epoch' + started_us * interval '1 microsecond',
            'ended_at', statement_timestamp(), 'outcome', 'dead', 'error', error::jsonb),
        worker_id
    FROM ended
), answered AS (
    DELETE FROM eventflow.signal WHERE worker_id = $1 AND job_id IN (SELECT id FROM ended)
)
SELECT id FROM ended;
