-- Claims of a worker besides those it knows of: their answer was lost.
--   $1 worker_id uuid, $2 known uuid[]
-- Returns the columns of claim_jobs that describe a job. Instants more than 10^12 seconds from the epoch, infinity among
-- them, count as that: an integer holds it, and it is so far beyond Python's years that the job alone is refused.
SELECT
    id, claim_no, attempt, crashes,
    (greatest(least(extract(epoch FROM due_at), 1e12), -1e12) * 1000000)::bigint AS due_us,
    (greatest(least(extract(epoch FROM ready_at), 1e12), -1e12) * 1000000)::bigint AS ready_us,
    name, version, payload::text AS payload, headers::text AS headers, retry::text AS retry, timeout_us
FROM eventflow.running
WHERE worker_id = $1 AND id <> ALL ($2::uuid[])
ORDER BY ready_at, id;
