-- Put ready jobs that a worker cannot run out of the way of its claims.
--   $1 queues text[] (null: all), $2 names text[], $3 versions integer[], $4 bounds_us bigint[]
-- Returns one row: parked, how many.
SELECT eventflow.park_unknown_jobs($1, $2, $3, $4) AS parked;
