-- Where the first event of some transactions stands.
--   $1 first_xids xid8[], $2 last_xids xid8[]: pairwise, ranges of transaction ids
-- Returns one row: position, null if they have none. Walks event_xid_idx over all their events.
SELECT min(e.position) AS position
FROM unnest($1::xid8[], $2::xid8[]) AS given (first_xid, last_xid)
JOIN eventflow.event AS e ON e.xid >= given.first_xid AND e.xid <= given.last_xid;
