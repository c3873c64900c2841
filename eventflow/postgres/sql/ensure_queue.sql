-- The number of a queue, made on first use.
--   $1 name text
SELECT eventflow.ensure_queue($1) AS id;
