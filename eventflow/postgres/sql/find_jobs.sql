-- Look jobs up wherever they are, newest first.
--   $1 id uuid, $2 state text, $3 queue text, $4 name text (null: any), $5 limit integer
-- Returns id, state, name, version, queue, priority, due_us, created_us, ready_us, payload, headers, tags,
-- aggregate_id, key, attempt, crashes, claim_no, past_attempts, worker_id, started_us, ended_us, reason, error.
-- One snapshot sees a job in exactly one of the tables. By id it walks their primary keys.
WITH found AS (
    (SELECT id, 'waiting' AS state, name, version, queue_id, priority, due_at, created_at, ready_at, payload, headers,
        tags, aggregate_id, key, attempt, crashes, claim_no, past_attempts, NULL::uuid AS worker_id,
        NULL::timestamptz AS started_at, NULL::timestamptz AS ended_at, NULL::text AS reason, NULL::json AS error
    FROM eventflow.job
    WHERE ($1::uuid IS NULL OR id = $1) AND ($2::text IS NULL OR $2 = 'waiting') AND ($4::text IS NULL OR name = $4)
        AND ($3::text IS NULL OR queue_id = (SELECT q.id FROM eventflow.queue AS q WHERE q.name = $3))
    ORDER BY id DESC LIMIT $5)
    UNION ALL
    (SELECT id, 'running', name, version, queue_id, priority, due_at, created_at, ready_at, payload, headers,
        tags, aggregate_id, key, attempt, crashes, claim_no, past_attempts, worker_id, claimed_at, NULL, NULL, NULL
    FROM eventflow.running
    WHERE ($1::uuid IS NULL OR id = $1) AND ($2::text IS NULL OR $2 = 'running') AND ($4::text IS NULL OR name = $4)
        AND ($3::text IS NULL OR queue_id = (SELECT q.id FROM eventflow.queue AS q WHERE q.name = $3))
    ORDER BY id DESC LIMIT $5)
    UNION ALL
    (SELECT id, state, name, version, queue_id, priority, due_at, created_at, NULL, payload, headers,
        tags, aggregate_id, key, attempt, crashes, claim_no, past_attempts, worker_id, started_at, finished_at, NULL, NULL
    FROM eventflow.job_history
    WHERE ($1::uuid IS NULL OR id = $1) AND ($2::text IS NULL OR $2 = state) AND ($4::text IS NULL OR name = $4)
        AND ($3::text IS NULL OR queue_id = (SELECT q.id FROM eventflow.queue AS q WHERE q.name = $3))
    ORDER BY id DESC LIMIT $5)
    UNION ALL
    (SELECT id, 'dead', name, version, queue_id, priority, due_at, created_at, NULL, payload, headers,
        tags, aggregate_id, key, attempt, crashes, claim_no, past_attempts, worker_id, NULL, died_at, reason, error
    FROM eventflow.dead_letter
    WHERE ($1::uuid IS NULL OR id = $1) AND ($2::text IS NULL OR $2 = 'dead') AND ($4::text IS NULL OR name = $4)
        AND ($3::text IS NULL OR queue_id = (SELECT q.id FROM eventflow.queue AS q WHERE q.name = $3))
    ORDER BY id DESC LIMIT $5)
)
SELECT
    f.id, f.state, f.name, f.version, q.name AS queue, f.priority,
    (extract(epoch FROM f.due_at) * 1000000)::bigint AS due_us,
    (extract(epoch FROM f.created_at) * 1000000)::bigint AS created_us,
    (extract(epoch FROM f.ready_at) * 1000000)::bigint AS ready_us,
    f.payload::text AS payload, f.headers::text AS headers, f.tags, f.aggregate_id, f.key, f.attempt, f.crashes,
    f.claim_no, f.past_attempts::text AS past_attempts, f.worker_id,
    (extract(epoch FROM f.started_at) * 1000000)::bigint AS started_us,
    (extract(epoch FROM f.ended_at) * 1000000)::bigint AS ended_us,
    f.reason, f.error::text AS error
FROM found AS f LEFT JOIN eventflow.queue AS q ON q.id = f.queue_id
ORDER BY f.id DESC LIMIT $5;
