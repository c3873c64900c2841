-- Keep new events of a stream from missing a subscriber that is about to leave its line there, until the transaction ends.
--   $1 subscriber text, $2 aggregate_name text, $3 aggregate_id text
-- Returns at most one row: catching_up. Walks the primary key.
SELECT catching_up FROM eventflow.event_line
WHERE subscriber = $1 AND aggregate_name = $2 AND aggregate_id = $3
FOR UPDATE;
