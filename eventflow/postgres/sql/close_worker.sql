-- Close a worker, unless it has beaten since it was looked at.
--   $1 worker_id uuid, $2 beat bigint (null: whatever it is)
-- Returns its id; no row: it is closed already, or alive. FOR UPDATE waits for its claims under way, which hold
-- the row FOR KEY SHARE; release_claims, in the same transaction, then sees them all.
UPDATE eventflow.worker SET closed_at = clock_timestamp()
WHERE id = (
    SELECT id FROM eventflow.worker
    WHERE id = $1 AND closed_at IS NULL AND ($2::bigint IS NULL OR beat = $2)
    FOR UPDATE
)
RETURNING id;
