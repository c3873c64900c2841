-- End claims whose jobs wait again, fenced by worker and claim number: retries, and releases, which give the
-- attempt back. One whose cancellation was requested ends instead.
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
), answered AS (
    DELETE FROM eventflow.signal WHERE worker_id = $1 AND job_id IN (SELECT id FROM ended)
    RETURNING job_id, claim_no, kind
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
    ON CONFLICT (id, expires_on) DO NOTHING
), timed AS (
    SELECT e.*, g.delay_us, g.refund, g.started_us, g.error, clock_timestamp() AS now,
        coalesce(timestamptz 'epoch' + g.at_us * interval '1 microsecond', e.due_at) AS next_due_at
    FROM ended AS e JOIN given AS g USING (id)
    WHERE NOT EXISTS (
        SELECT FROM answered AS a WHERE a.job_id = e.id AND a.claim_no = e.claim_no AND a.kind = 'cancel'
    )
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
            CASE jsonb_typeof(past_attempts)
                WHEN 'array' THEN CASE WHEN jsonb_array_length(past_attempts) < 20
                    THEN past_attempts ELSE past_attempts - 5 END  -- the first 5 and the last 15 are kept
                ELSE '[]'  -- none, or what somebody wrote by hand
            END || jsonb_build_object(
                'attempt', attempt, 'worker', worker_id,
                'started_at', timestamptz 'epoch' + started_us * interval '1 microsecond',
                'ended_at', now, 'outcome', 'retry', 'error', error::jsonb)
        END
    FROM timed
    ON CONFLICT (id) DO NOTHING  -- a client inserted the claimed job again: that one waits
)
SELECT id FROM ended;
