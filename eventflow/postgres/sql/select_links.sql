-- The jobs and events of one story, oldest first.
--   $1 correlation_id text
-- Returns kind ('job' or 'event'), id, name, state, at_us, causation_id, stream (aggregate's name and id, and the version
-- of the event; or null). Reads all jobs: it is for a person who looks.
SELECT 'job' AS kind, 'job-' || j.id AS id, j.name, j.state, eventflow.microseconds(j.created_at) AS at_us,
    j.headers ->> 'causation_id' AS causation_id, NULL AS stream
FROM eventflow.any_job AS j
WHERE j.headers ->> 'correlation_id' = $1 OR 'job-' || j.id = $1
UNION ALL
SELECT 'event', 'event-' || e.id, e.name, NULL, eventflow.microseconds(e.recorded_at),
    e.metadata ->> 'causation_id', e.aggregate_name || ' ' || e.aggregate_id || ' v' || e.stream_version
FROM eventflow.event AS e
WHERE e.metadata ->> 'correlation_id' = $1
ORDER BY at_us, id;
