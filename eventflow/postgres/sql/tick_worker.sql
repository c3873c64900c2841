-- One look at everything a worker wants to know once a second; the function says what. Writes nothing.
--   $1 worker_id uuid, $2 queues text[] (null: all), $3 names text[], $4 versions integer[], $5 settled_xid bigint,
--   $6 bounds_us bigint[]
-- Returns one row.
SELECT * FROM eventflow.tick_worker($1, $2, $3, $4, $5, $6);
