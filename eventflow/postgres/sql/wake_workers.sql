-- Notify the workers, unless somebody has done so a moment ago. Alone in its transaction.
--   $1 payload text ('' there may be jobs, 'signal' somebody asks something of one), $2 since_us bigint: a notification
--   by anybody after this will do; null: none will
-- Returns one row: is_done; wait_us, until the next should be sent; now_us.
SELECT is_done, wait_us, now_us FROM eventflow.wake_workers($1, $2);
