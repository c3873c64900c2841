-- The database's time, for jobs that this transaction will write. It begins to be seen as open before that, so that
-- no claim's lower bound passes them by.
-- Returns one row: now_us.
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us FROM pg_current_xact_id();
