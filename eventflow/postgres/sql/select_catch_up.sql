-- How far a subscriber has been caught up.
--   $1 subscriber text
-- Returns at most one row: cursor, events_read, jobs_made, is_finished.
SELECT cursor, events_read, jobs_made, finished_at IS NOT NULL AS is_finished
FROM eventflow.catch_up WHERE subscriber = $1;
