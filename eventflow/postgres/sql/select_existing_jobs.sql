-- Which of these jobs exist, in whatever state: tells whether a commit whose answer was lost took place.
--   $1 ids uuid[]
-- Returns their ids. Walks the primary keys.
SELECT id FROM eventflow.job WHERE id = ANY ($1::uuid[])
UNION SELECT id FROM eventflow.running WHERE id = ANY ($1::uuid[])
UNION SELECT id FROM eventflow.job_history WHERE id = ANY ($1::uuid[])
UNION SELECT id FROM eventflow.dead_letter WHERE id = ANY ($1::uuid[]);
