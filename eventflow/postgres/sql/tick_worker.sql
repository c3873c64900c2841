-- One look at everything a worker wants to know once a second. Writes nothing.
--   $1 worker_id uuid, $2 queues text[] (null: all), $3 names text[], $4 versions integer[] (pairwise)
-- Returns one row: now_us, next_us (when the earliest claimable job of the next two seconds is ready, or null), open, server, then arrays:
-- peers (other open workers' ids), beats, gone (their proven session is missing), and the signals to this worker.
-- Walks job_ready_idx, one row per queue and priority.
WITH known AS MATERIALIZED (
    SELECT name, version FROM unnest($3::text[], $4::integer[]) AS k (name, version)
), server AS MATERIALIZED (
    SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint::text
        || '/' || (SELECT timeline_id FROM pg_control_checkpoint()) AS id
), sessions AS MATERIALIZED (
    SELECT (classid::bigint << 32) | objid::bigint AS key FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1 AND granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
), peer AS (
    SELECT w.id, w.beat,
        w.session_key IS NOT NULL AND w.session_server = (SELECT server.id FROM server)
            AND NOT EXISTS (SELECT FROM sessions AS s WHERE s.key = w.session_key) AS gone
    FROM eventflow.worker AS w WHERE w.closed_at IS NULL AND w.id <> $1
), asked AS (
    SELECT job_id, claim_no, kind, (extract(epoch FROM due_at) * 1000000)::bigint AS due_us
    FROM eventflow.signal WHERE worker_id = $1
)
SELECT
    (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us,
    (
        SELECT (extract(epoch FROM min(j.ready_at)) * 1000000)::bigint
        FROM eventflow.queue AS q CROSS JOIN generate_series(0, 3) AS p (priority) CROSS JOIN LATERAL (
            SELECT w.ready_at FROM eventflow.job AS w
            WHERE w.queue_id = q.id AND w.lane = 0 AND w.priority = p.priority::smallint AND w.parked IS NULL
              AND w.ready_at <= statement_timestamp() + interval '2 seconds'  -- there is another tick before that
              AND (w.name, w.version) IN (SELECT k.name, k.version FROM known AS k)
            ORDER BY w.ready_at, w.id LIMIT 1
        ) AS j
        WHERE $2::text[] IS NULL OR q.name = ANY ($2::text[])
    ) AS next_us,
    EXISTS (SELECT FROM eventflow.worker WHERE id = $1 AND closed_at IS NULL) AS open,
    (SELECT server.id FROM server) AS server,
    ARRAY(SELECT peer.id::text FROM peer ORDER BY peer.id) AS peers,
    ARRAY(SELECT peer.beat FROM peer ORDER BY peer.id) AS beats,
    ARRAY(SELECT peer.gone FROM peer ORDER BY peer.id) AS gone,
    ARRAY(SELECT job_id::text FROM asked ORDER BY job_id, kind) AS signal_jobs,
    ARRAY(SELECT claim_no FROM asked ORDER BY job_id, kind) AS signal_claims,
    ARRAY(SELECT kind FROM asked ORDER BY job_id, kind) AS signal_kinds,
    ARRAY(SELECT due_us FROM asked ORDER BY job_id, kind) AS signal_dues;
