-- The worker in a process.
--   $1 pid integer
-- Returns its id; no row: the process has not registered yet.
SELECT id FROM eventflow.worker WHERE pid = $1 AND closed_at IS NULL;
