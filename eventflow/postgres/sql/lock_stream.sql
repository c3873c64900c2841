-- Keep others from writing to a stream until the transaction ends.
--   $1 aggregate_name text, $2 aggregate_id text
SELECT pg_advisory_xact_lock(eventflow.stream_key($1, $2));
