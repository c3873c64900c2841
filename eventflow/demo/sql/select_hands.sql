-- What is in the hands of workers at this moment.
-- Returns one row: now, running (their handlers have started), claimed (they have not: most are not due yet).
SELECT
    clock_timestamp() AS now,
    count(*) FILTER (WHERE started) AS running,
    count(*) FILTER (WHERE NOT started) AS claimed
FROM (
    SELECT EXISTS (
        SELECT FROM demo.scheduled AS s JOIN demo.execution AS e USING (source_id) WHERE s.job_id = r.id
    ) AS started
    FROM eventflow.running AS r
) AS held;
