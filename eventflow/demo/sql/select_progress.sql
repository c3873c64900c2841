-- Where the jobs are, in one snapshot.
-- Returns one row: scheduled, waiting, claimed (not started: most are not due yet), running, done, and lateness_ms
-- [p50, p99] of what is done (null: nothing is).
WITH held AS (
    SELECT EXISTS (
        SELECT FROM demo.scheduled AS s JOIN demo.execution AS e USING (source_id) WHERE s.job_id = r.id
    ) AS started
    FROM eventflow.running AS r
)
SELECT
    (SELECT count(*) FROM demo.scheduled) AS scheduled,
    (SELECT count(*) FROM eventflow.job) AS waiting,
    (SELECT count(*) FROM held WHERE NOT started) AS claimed,
    (SELECT count(*) FROM held WHERE started) AS running,
    (SELECT count(*) FROM eventflow.job_history) AS done,
    (
        SELECT percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (
            ORDER BY extract(epoch FROM e.started_at - h.due_at)::float8 * 1000)
        FROM demo.execution AS e
        JOIN demo.scheduled AS s USING (source_id)
        JOIN eventflow.job_history AS h ON h.id = s.job_id
    ) AS lateness_ms;
