-- Look one job up, wherever it is.
--   $1 id uuid
-- Returns id, state, name, version, queue, priority, due_us, created_us, ready_us, payload, headers, tags,
-- aggregate_id, key, attempt, crashes, claim_no, past_attempts, worker_id, started_us, ended_us, parked,
-- reason, error.
-- Walks the tables' primary keys.
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
WHERE f.id = $1;
