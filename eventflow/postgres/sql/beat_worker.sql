-- Show that a worker is alive, and which session others may look for (both null: none is proven).
--   $1 worker_id uuid, $2 session_key bigint, $3 session_server text
-- Returns its id; no row: it has been closed.
UPDATE eventflow.worker
SET beat = beat + 1, beat_at = clock_timestamp(), session_key = $2, session_server = $3
WHERE id = $1 AND closed_at IS NULL
RETURNING id;
