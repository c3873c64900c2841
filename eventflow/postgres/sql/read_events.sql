-- Events between two snapshots: visible in the one, not in the other; in order of position.
--   $1 before pg_snapshot, $2 until pg_snapshot, $3 xids xid8[] (transactions that were running before),
--   $4 after bigint, $5 floor bigint (only events of $3 stand before it), $6 last bigint, $7 most bigint
-- Walks event_xid_idx for each of $3 up to the floor, and event_position_idx from there.
SELECT e.aggregate_name, e.aggregate_id, e.stream_version, e.position, e.id::text AS id, e.name, e.version,
    e.data::text AS data, e.metadata::text AS metadata, eventflow.microseconds(e.recorded_at) AS recorded_us
FROM (
    (
        SELECT late.* FROM unnest($3::xid8[]) AS given (xid) CROSS JOIN LATERAL (
            SELECT * FROM eventflow.event WHERE event.xid = given.xid AND position > $4 AND position < $5
            ORDER BY event.xid, position LIMIT $7
        ) AS late
    )
    UNION ALL
    (
        SELECT * FROM eventflow.event WHERE position > $4 AND position >= $5 AND position <= $6
          AND pg_visible_in_snapshot(xid, $2) AND NOT pg_visible_in_snapshot(xid, $1)
        ORDER BY position LIMIT $7
    )
) AS e
ORDER BY e.position LIMIT $7;
