-- Hold an advisory lock for as long as this session lasts: others see by it that the worker's process is there.
--   $1 key bigint
-- Returns one row: taken.
SELECT pg_try_advisory_lock($1) AS taken;
