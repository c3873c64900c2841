-- Send a worker a proof on its own channel, which wakes nobody else. A full queue of notifications stays full after
-- the one who did not read it has left, until somebody asks how full it is.
--   $1 channel text, $2 nonce text
SELECT pg_notification_queue_usage(), pg_notify($1, $2);
