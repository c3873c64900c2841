-- Bring jobs back that claims have passed by.
--   $1 bounds_us bigint[]
-- Returns one row: swept, how many.
SELECT eventflow.sweep_jobs($1) AS swept;
