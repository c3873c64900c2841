-- Events of some transactions, in no order.
--   $1 first_xids xid8[], $2 last_xids xid8[]: pairwise, ranges of transaction ids; $3 most bigint
-- Walks event_xid_idx.
SELECT e.aggregate_name, e.aggregate_id, e.stream_version, e.position, e.id::text AS id, e.name, e.version,
    e.data::text AS data, e.metadata::text AS metadata, eventflow.microseconds(e.recorded_at) AS recorded_us
FROM unnest($1::xid8[], $2::xid8[]) AS given (first_xid, last_xid)
CROSS JOIN LATERAL (
    SELECT * FROM eventflow.event WHERE xid >= given.first_xid AND xid <= given.last_xid
    ORDER BY xid, position LIMIT $3
) AS e
LIMIT $3;
