-- What there was before a command: the result of the same operation, or the newest snapshot and the events after it.
--   $1 aggregate_name text, $2 aggregate_id text (null: no stream), $3 receipt_scope text, $4 receipt_aggregate text,
--   $5 source_id text, $6 snapshot_version integer (the newest that can be read; null: none)
-- Returns at least one row. First result, snapshot_at, snapshot_version, snapshot, or nulls; then a row for each event,
-- in order: stream_version, name, version, data. Walks the primary keys.
WITH receipt AS MATERIALIZED (
    SELECT r.result::text FROM eventflow.command_receipt AS r
    WHERE r.scope = $3 AND r.aggregate_id = $4 AND r.source_id = $5
), latest AS MATERIALIZED (
    SELECT s.stream_version, s.version, s.data::text FROM eventflow.snapshot AS s
    WHERE s.aggregate_name = $1 AND s.aggregate_id = $2 AND s.version <= $6
)
SELECT receipt.result, latest.stream_version AS snapshot_at, latest.version AS snapshot_version,
    latest.data AS snapshot, 0 AS stream_version, NULL AS name, NULL::integer AS version, NULL AS data
FROM (VALUES (true)) AS once LEFT JOIN receipt ON true LEFT JOIN latest ON true
UNION ALL
SELECT * FROM (
    SELECT NULL, NULL::integer, NULL::integer, NULL, e.stream_version, e.name, e.version, e.data::text
    FROM eventflow.event AS e
    WHERE e.aggregate_name = $1 AND e.aggregate_id = $2 AND NOT EXISTS (SELECT FROM receipt)
      AND e.stream_version > coalesce((SELECT latest.stream_version FROM latest), 0)
    ORDER BY e.stream_version
) AS events;
