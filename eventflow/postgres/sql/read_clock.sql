-- The database's time, for one who waits for it. Nothing is committed, so the answer is as quick as can be.
-- Returns one row: now_us.
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us;
