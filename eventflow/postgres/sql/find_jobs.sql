-- Jobs that match, newest first.
--   $1 state text, $2 queue text, $3 name text (null: any), $4 limit integer
-- Returns id, state, name, version, queue, priority, due_s, created_s, ready_s, payload, headers, tags,
-- aggregate_id, key, attempt, crashes, claim_no, past_attempts, worker_id, started_s, ended_s, parked, reason, error.
-- Instants are numeric seconds since the epoch: integers would fail at infinity, and all rows with that one.
-- Walks the tables' primary keys backwards, and as far as matches are rare.
SELECT
    f.id, f.state, f.name, f.version, q.name AS queue, f.priority,
    extract(epoch FROM f.due_at) AS due_s, extract(epoch FROM f.created_at) AS created_s,
    extract(epoch FROM f.ready_at) AS ready_s,
    f.payload::text AS payload, f.headers::text AS headers, f.tags, f.aggregate_id, f.key, f.attempt, f.crashes,
    f.claim_no, f.past_attempts::text AS past_attempts, f.worker_id,
    extract(epoch FROM f.started_at) AS started_s, extract(epoch FROM f.ended_at) AS ended_s,
    f.parked, f.reason, f.error::text AS error
FROM eventflow.any_job AS f LEFT JOIN eventflow.queue AS q ON q.id = f.queue_id
WHERE ($1::text IS NULL OR f.state = $1) AND ($2::text IS NULL OR q.name = $2) AND ($3::text IS NULL OR f.name = $3)
ORDER BY f.id DESC LIMIT $4;
