-- End claims whose jobs will not run again, fenced by worker and claim number.
--   $1 worker_id uuid, pairwise arrays: $2 ids uuid[], $3 claim_nos integer[], $4 states text[] (of job_history),
--   $5 started_us bigint[], $6 retention_days integer[] (0: not kept), $7 errors text[] (JSON or null)
-- Returns the ids that were not this worker's any more, mostly none; of these nothing is changed.
WITH ended AS MATERIALIZED (
    SELECT id FROM eventflow.complete_jobs($1, $2, $3, $4, $5, $6, $7) AS id
)
SELECT given.id::text AS id FROM unnest($2::uuid[]) AS given (id)
WHERE given.id NOT IN (SELECT ended.id FROM ended);
