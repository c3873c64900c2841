-- What came of the jobs.
-- Returns one row: scheduled, executed, repeated, early (executions), lost, rescued, hit, lateness [p50, p99] in ms
-- of all / spared / hit jobs (null: there are none), and ms from the kill to the new worker's registration and to
-- the first start of a job that the dead one had held (null: there was none).
-- A job is hit if the dead worker held it, or if it was due before the new worker came and had not started before
-- the kill; the others were due while a worker was alive. Lateness is that of a job's last start.
WITH deaths AS (
    SELECT k.killed_at, min(w.started_at) AS revived_at
    FROM demo.kill AS k LEFT JOIN eventflow.worker AS w ON w.started_at > k.killed_at
    GROUP BY k.killed_at
), starts AS (
    SELECT source_id, count(*) AS number, min(started_at) AS first_at, max(started_at) AS last_at
    FROM demo.execution GROUP BY source_id
), jobs AS (
    SELECT
        s.source_id, h.due_at,
        coalesce(x.number, 0) AS starts,
        coalesce(h.state = 'succeeded', false) AS done,
        coalesce(h.crashes, 0) > 0 AS rescued,
        coalesce(h.crashes > 0 OR (h.due_at < d.revived_at AND x.first_at >= d.killed_at), false) AS hit,
        extract(epoch FROM x.last_at - h.due_at)::float8 * 1000 AS late_ms
    FROM demo.scheduled AS s
    LEFT JOIN starts AS x USING (source_id)
    LEFT JOIN eventflow.job_history AS h ON h.id = s.job_id
    LEFT JOIN deaths AS d ON true
)
SELECT
    count(*) AS scheduled,
    count(*) FILTER (WHERE starts > 0) AS executed,
    count(*) FILTER (WHERE starts > 1) AS repeated,
    (
        SELECT count(*) FROM demo.execution AS e JOIN jobs AS j USING (source_id) WHERE e.started_at < j.due_at
    ) AS early,
    count(*) FILTER (WHERE starts = 0 OR NOT done) AS lost,
    count(*) FILTER (WHERE rescued) AS rescued,
    count(*) FILTER (WHERE hit) AS hit,
    percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY late_ms) AS all_ms,
    percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY late_ms) FILTER (WHERE NOT hit) AS spared_ms,
    percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY late_ms) FILTER (WHERE hit) AS hit_ms,
    (SELECT extract(epoch FROM revived_at - killed_at)::float8 * 1000 FROM deaths) AS revived_after_ms,
    (
        SELECT extract(epoch FROM min(e.started_at) - d.killed_at)::float8 * 1000
        FROM deaths AS d CROSS JOIN demo.execution AS e JOIN jobs AS j USING (source_id)
        WHERE j.rescued AND e.started_at > d.revived_at
        GROUP BY d.killed_at
    ) AS rescued_after_ms
FROM jobs;
