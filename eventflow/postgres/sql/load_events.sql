-- The events of a stream beyond a version, in order.
--   $1 aggregate_name text, $2 aggregate_id text, $3 after integer, $4 most bigint (null: all)
-- Walks the primary key.
SELECT stream_version, position, id::text AS id, name, version, data::text AS data, metadata::text AS metadata,
    eventflow.microseconds(recorded_at) AS recorded_us
FROM eventflow.event
WHERE aggregate_name = $1 AND aggregate_id = $2 AND stream_version > $3
ORDER BY stream_version LIMIT $4;
