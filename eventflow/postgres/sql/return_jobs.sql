-- End claims whose jobs wait again, fenced by worker and claim number: retries, and releases, which give the
-- attempt back.
--   $1 worker_id uuid, pairwise arrays: $2 ids uuid[], $3 claim_nos integer[], $4 at_us bigint[] (a new due time),
--   $5 delay_us bigint[] (from now; both null: at the due time), $6 refunds integer[] (attempts given back),
--   $7 started_us bigint[], $8 errors text[] (JSON or null)
-- Returns the ids that were still this worker's; of the others nothing is changed.
WITH given AS MATERIALIZED (
    SELECT * FROM unnest(
        $2::uuid[], $3::integer[], $4::bigint[], $5::bigint[], $6::integer[], $7::bigint[], $8::text[]
    ) AS g (id, claim_no, at_us, delay_us, refund, started_us, error)
), ended AS (
    -- By an array, not a join, whose order would be free: on a small table the plan would turn round.
    DELETE FROM eventflow.running AS r
    WHERE r.worker_id = $1 AND r.id = ANY (ARRAY(
        SELECT g.id FROM given AS g CROSS JOIN LATERAL (
            SELECT FROM eventflow.running AS x WHERE x.id = g.id AND x.claim_no = g.claim_no OFFSET 0
        ) AS held
    ))
    RETURNING r.*
), timed AS (
    SELECT e.*, g.delay_us, g.refund, g.started_us, g.error, clock_timestamp() AS now,
        coalesce(timestamptz 'epoch' + g.at_us * interval '1 microsecond', e.due_at) AS next_due_at
    FROM ended AS e JOIN given AS g USING (id)
), waiting AS (
    INSERT INTO eventflow.job (
        id, queue_id, lane, priority, due_at, ready_at, expires_at, created_at, name, version, payload, headers, tags,
        aggregate_id, key, batch_id, retry, timeout_us, attempt, crashes, claim_no, past_attempts
    )
    SELECT
        id, queue_id, lane, priority, next_due_at,
        greatest(next_due_at, now + coalesce(delay_us, 0) * interval '1 microsecond'),
        expires_at, created_at, name, version, payload, headers, tags, aggregate_id, key, batch_id, retry, timeout_us,
        attempt - refund, crashes, claim_no,
        CASE WHEN error IS NULL THEN past_attempts ELSE
            coalesce(past_attempts, '[]') || jsonb_build_object(
                'attempt', attempt, 'worker', worker_id,
                'started_at', timestamptz 'epoch' + started_us * interval '1 microsecond',
                'ended_at', now, 'outcome', 'retry', 'error', error::jsonb)
        END
    FROM timed
), answered AS (
    DELETE FROM eventflow.signal WHERE worker_id = $1 AND job_id IN (SELECT id FROM ended)
)
SELECT id FROM ended;
