-- Which story something belongs to.
--   $1 id text: of a job, an event, or a command's source id; $2 uuid: the one in it, or null
-- Returns one row: correlation_id, or null.
SELECT coalesce(
    (SELECT coalesce(j.headers ->> 'correlation_id', $1) FROM eventflow.any_job AS j WHERE j.id = $2 LIMIT 1),
    (SELECT e.metadata ->> 'correlation_id' FROM eventflow.event AS e WHERE e.id = $2 LIMIT 1),
    (SELECT $1 FROM eventflow.event AS e WHERE e.metadata ->> 'correlation_id' = $1 LIMIT 1),
    (SELECT j.headers ->> 'correlation_id' FROM eventflow.any_job AS j WHERE j.payload ->> 'source_id' = $1 LIMIT 1),
    (SELECT e.metadata ->> 'correlation_id' FROM eventflow.event AS e WHERE e.metadata ->> 'source_id' = $1 LIMIT 1),
    (SELECT $1 FROM eventflow.any_job AS j WHERE j.headers ->> 'correlation_id' = $1 LIMIT 1)
) AS correlation_id;
