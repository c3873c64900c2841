-- Note that a handler has started.
--   $1 source_id text, $2 worker_pid integer
INSERT INTO demo.execution (source_id, worker_pid, started_at) VALUES ($1, $2, clock_timestamp());
