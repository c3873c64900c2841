-- Bring jobs back that claims have passed by.
--   $1 queues text[] (null: all), $2 bounds_us bigint[]
-- Returns one row: swept, how many.
SELECT eventflow.sweep_jobs($1, $2) AS swept;
