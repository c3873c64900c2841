-- Bring jobs back that claims have passed by, and put lines on their way whose job has ended without going on.
--   $1 bounds_us bigint[]
-- Returns one row: swept and mended, how many.
SELECT eventflow.sweep_jobs($1) AS swept, eventflow.mend_lines() AS mended;
