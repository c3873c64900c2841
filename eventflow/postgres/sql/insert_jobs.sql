-- Add jobs. A delay counts from this statement; a due time in the past makes a job ready now.
--   pairwise arrays: $1 ids uuid[], $2 queue_ids integer[], $3 priorities smallint[], $4 at_us bigint[] and
--   $5 delay_us bigint[] (both null: now), $6 names text[], $7 versions integer[], $8 payloads text[],
--   $9 headers text[], $10 tags text[] (array literals), $11 aggregate_ids text[], $12 keys text[],
--   $13 retries text[], $14 timeouts_us bigint[]
-- Returns one row: soonest_us, from now until the first of them is ready.
SELECT eventflow.insert_jobs($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) AS soonest_us;
