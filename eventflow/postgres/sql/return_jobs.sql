-- End claims whose jobs wait again, fenced by worker and claim number: retries and releases.
--   $1 worker_id uuid, pairwise arrays: $2 ids uuid[], $3 claim_nos integer[], $4 at_us bigint[] (a new due time),
--   $5 delay_us bigint[] (from now; both null: at the due time), $6 refunds integer[] (attempts given back),
--   $7 started_us bigint[], $8 errors text[] (JSON or null)
-- Returns the ids that were still this worker's; of the others nothing is changed.
SELECT id FROM eventflow.return_jobs($1, $2, $3, $4, $5, $6, $7, $8, crashed => false) AS id;
