-- What there was before a command: the result of the same operation, or the newest snapshot and the events after it.
--   $1 aggregate_name text, $2 aggregate_id text (null: no stream), $3 receipt_scope text, $4 receipt_aggregate text,
--   $5 source_id text, $6 snapshot_version integer (the newest that can be read; null: none)
-- Returns rows of stream_version, name, version, data. First, without a name, the result (without a version too) or the
-- snapshot, if there is one; then the events in order. Walks the primary keys.
WITH receipt AS MATERIALIZED (
    SELECT r.result::text FROM eventflow.command_receipt AS r
    WHERE r.scope = $3 AND r.aggregate_id = $4 AND r.source_id = $5
), latest AS MATERIALIZED (
    SELECT s.stream_version, s.version, s.data::text FROM eventflow.snapshot AS s
    WHERE s.aggregate_name = $1 AND s.aggregate_id = $2 AND s.version <= $6 AND NOT EXISTS (SELECT FROM receipt)
)
SELECT NULL::integer AS stream_version, NULL AS name, NULL::integer AS version, receipt.result AS data FROM receipt
UNION ALL
SELECT latest.stream_version, NULL, latest.version, latest.data FROM latest
UNION ALL
SELECT * FROM (
    SELECT e.stream_version, e.name, e.version, e.data::text
    FROM eventflow.event AS e
    WHERE e.aggregate_name = $1 AND e.aggregate_id = $2 AND NOT EXISTS (SELECT FROM receipt)
      AND e.stream_version > coalesce((SELECT latest.stream_version FROM latest), 0)
    ORDER BY e.stream_version
) AS events;
