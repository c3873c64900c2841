-- Wake the workers. Alone in its transaction: then it neither waits for a flush nor holds up other commits.
--   $1 payload text ('' there may be jobs, 'signal' somebody asks something of one)
-- Returns one row: listeners, how many workers that reaches.
SELECT pg_notify('eventflow', $1), (SELECT count(*) FROM eventflow.worker WHERE closed_at IS NULL) AS listeners;
