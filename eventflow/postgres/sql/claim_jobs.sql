-- Claim jobs for one worker; the function says how.
--   $1 worker_id uuid, $2 queues text[] (null: all), $3 names text[], $4 versions integer[], $5 ready integer,
--   $6 ahead integer, $7 horizon_us bigint, $8 parked boolean, $9 suspect boolean, $10 look_from_us bigint,
--   $11 settled_xid bigint, $12 bounds_us bigint[]
-- Returns the answer's row, and then one for each job, with its columns in the order of ClaimedJob, else nulls; and the
-- latest now_us in the last row.
SELECT
    now_us, open, split_us, next_us, open_xid, oldest_xid, next_xid, left_ranges, left_us,
    id::text AS id, claim_no, attempt, crashes, due_us, ready_us, name, version, payload, headers, retry, timeout_us
FROM eventflow.claim_jobs($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12);
