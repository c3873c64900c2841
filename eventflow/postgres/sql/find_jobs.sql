-- Jobs that match, newest first.
--   $1 state text, $2 queue text, $3 name text (null: any), $4 limit integer
-- Returns id, state, name, version, queue, priority, due_us, created_us, ready_us, payload, headers, tags,
-- aggregate_id, key, attempt, crashes, claim_no, past_attempts, worker_id, started_us, ended_us, parked,
-- reason, error.
-- Walks the tables' primary keys backwards, and as far as matches are rare.
SELECT
    f.id, f.state, f.name, f.version, q.name AS queue, f.priority,
    (extract(epoch FROM f.due_at) * 1000000)::bigint AS due_us,
    (extract(epoch FROM f.created_at) * 1000000)::bigint AS created_us,
    (extract(epoch FROM f.ready_at) * 1000000)::bigint AS ready_us,
    f.payload::text AS payload, f.headers::text AS headers, f.tags, f.aggregate_id, f.key, f.attempt, f.crashes,
    f.claim_no, f.past_attempts::text AS past_attempts, f.worker_id,
    (extract(epoch FROM f.started_at) * 1000000)::bigint AS started_us,
    (extract(epoch FROM f.ended_at) * 1000000)::bigint AS ended_us,
    f.parked, f.reason, f.error::text AS error
FROM eventflow.any_job AS f LEFT JOIN eventflow.queue AS q ON q.id = f.queue_id
WHERE ($1::text IS NULL OR f.state = $1) AND ($2::text IS NULL OR q.name = $2) AND ($3::text IS NULL OR f.name = $3)
ORDER BY f.id DESC LIMIT $4;
