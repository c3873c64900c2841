-- The ends of the log.
-- Returns one row: position, xid; nulls if there are no events. Walks event_position_idx and event_xid_idx, one row of each.
SELECT (SELECT max(position) FROM eventflow.event) AS position,
    (SELECT xid FROM eventflow.event ORDER BY xid DESC LIMIT 1) AS xid;
