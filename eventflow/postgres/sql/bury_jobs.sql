-- End claims whose jobs become dead letters, fenced by worker and claim number.
--   $1 worker_id uuid, pairwise arrays: $2 ids uuid[], $3 claim_nos integer[], $4 reasons text[],
--   $5 started_us bigint[], $6 errors text[] (JSON or null)
-- Returns the ids that were still this worker's; of the others nothing is changed.
SELECT id FROM eventflow.bury_jobs($1, $2, $3, $4, $5, $6) AS id;
