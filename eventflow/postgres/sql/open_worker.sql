-- Register an incarnation of a worker.
--   $1 id uuid, $2 host text, $3 pid integer, $4 version text, $5 queues text[] (null: all), $6 concurrency integer
INSERT INTO eventflow.worker (id, host, pid, version, queues, concurrency)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (id) DO NOTHING;
