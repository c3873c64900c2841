-- Keep new events of a stream from missing a subscriber that is about to leave its line there, until the transaction ends.
--   $1 subscriber text, $2 aggregate_name text, $3 aggregate_id text
-- Returns at most one row: job_id. Walks the primary key.
SELECT job_id::text AS job_id FROM eventflow.event_line
WHERE subscriber = $1 AND aggregate_name = $2 AND aggregate_id = $3
FOR UPDATE;
