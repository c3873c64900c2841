-- Claims of a worker besides those it knows of: their answer was lost.
--   $1 worker_id uuid, $2 known uuid[]
-- Returns the columns of claim_jobs that describe a job.
SELECT
    id::text AS id, claim_no, attempt, crashes,
    eventflow.microseconds(due_at) AS due_us,
    eventflow.microseconds(ready_at) AS ready_us,
    name, version, payload::text AS payload, headers::text AS headers, retry::text AS retry, timeout_us
FROM eventflow.running
WHERE worker_id = $1 AND id <> ALL ($2::uuid[])
ORDER BY ready_at, id;
