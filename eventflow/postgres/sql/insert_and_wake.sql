-- Add jobs and commit, then wake the workers, unless the first of the jobs is ready later than $15 wake_within_us. Alone
-- in its transaction.
--   $1 to $14 as in insert_jobs.sql
-- Returns one row: soonest_us, from now until the first of them is ready; is_done, wait_us as in wake_workers.sql, null
-- if nobody had to be woken.
CALL eventflow.insert_and_wake(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, NULL, NULL, NULL
);
