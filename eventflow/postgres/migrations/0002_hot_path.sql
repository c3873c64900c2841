-- The statements that run all the time, as functions, so that their plans are pinned: the loop at the end sets it up.
--
-- These tables go from empty to millions of rows and back within minutes. A plan made on the empty table keeps its
-- sequential scan until statistics change; one of these scans costs seconds. So nothing is left to choose: the plan
-- is generic, made once per session, and every row is found through the one index meant for it. Settings of a
-- function, unlike those of a session, work and end with each call, through any pooler.
--
-- Jobs are found in order by job_ready_idx, by queue and priority: one such range after the other. For each, the
-- caller may know an instant before which nothing is left to find; `bounds_us` has it at queue_id * 4 + priority + 1
-- (microseconds since the epoch; 0 or missing: none). What was claimed stays in the index until a vacuum, which
-- an old snapshot anywhere in the database holds up; without the bound each claim would walk over all of it.

-- Jobs put aside, so that claims do not walk over them: 'unknown' to a worker that came by, or 'suspect'.
CREATE INDEX job_parked_idx ON eventflow.job (parked, name, version, queue_id, lane, priority, ready_at, id)
    WHERE parked IS NOT NULL;
-- For rescue, which would otherwise read all that is running, and all that ran since an old snapshot.
CREATE INDEX running_worker_idx ON eventflow.running (worker_id);

-- Microseconds since the epoch. What is more than 10^12 seconds away, infinity too, counts as that: an integer holds
-- it, and it is so far beyond Python's years that only the job concerned is refused.
CREATE FUNCTION eventflow.microseconds(instant timestamptz) RETURNS bigint
LANGUAGE sql STABLE RETURN CASE WHEN instant IS NOT NULL THEN  -- which least() and greatest() would lose
    (greatest(least(extract(epoch FROM instant), 1e12), -1e12) * 1000000)::bigint
END;

CREATE FUNCTION eventflow.instant(microseconds bigint) RETURNS timestamptz
LANGUAGE sql STABLE RETURN timestamptz 'epoch' + microseconds * interval '1 microsecond';

-- The ranges of the claim index that a worker serves, each with its lower bound.
CREATE FUNCTION eventflow.claim_ranges(queues text[], bounds_us bigint[])
RETURNS TABLE (number integer, queue_id integer, priority smallint, bound timestamptz)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT q.id * 4 + p.priority + 1, q.id, p.priority::smallint,
        CASE WHEN bounds_us[q.id * 4 + p.priority + 1] > 0
            THEN eventflow.instant(bounds_us[q.id * 4 + p.priority + 1]) ELSE '-infinity' END
    FROM eventflow.queue AS q CROSS JOIN generate_series(0, 3) AS p (priority)
    WHERE claim_ranges.queues IS NULL OR q.name = ANY (claim_ranges.queues);
END;

-- Attempts that ended without success, with one more: the first 5 and the last 15 are kept.
CREATE FUNCTION eventflow.add_attempt(past jsonb, attempt jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE
RETURN CASE
    WHEN jsonb_typeof(past) IS DISTINCT FROM 'array' THEN '[]'::jsonb  -- none, or what somebody wrote by hand
    WHEN jsonb_array_length(past) < 20 THEN past
    ELSE past - 5
END || attempt;

-- The oldest transaction that is open in a snapshot, from a given one on; if there is none, the first
-- that had not ended.
CREATE FUNCTION eventflow.oldest_open_xid(seen pg_snapshot, settled_xid bigint) RETURNS bigint
LANGUAGE sql STABLE
RETURN coalesce(
    (SELECT min(x.xid::text::bigint) FROM pg_snapshot_xip(seen) AS x (xid) WHERE x.xid::text::bigint >= settled_xid),
    pg_snapshot_xmax(seen)::text::bigint);

-- A number that no transaction had when this was called, nor any before. A snapshot's xmax is not that: it is the first
-- that had not ended. The locks that transactions hold on their own numbers tell of those beyond.
CREATE FUNCTION eventflow.next_free_xid(seen pg_snapshot) RETURNS bigint
LANGUAGE sql STABLE
RETURN pg_snapshot_xmax(seen)::text::bigint + (
    SELECT coalesce(max(ahead.by) + 1, 0) FROM pg_locks AS l CROSS JOIN LATERAL (
        -- These have 32 bits, and begin again from 3 after the last.
        SELECT (l.transactionid::text::bigint - pg_snapshot_xmax(seen)::text::bigint) & 4294967295 AS by
    ) AS ahead
    WHERE l.locktype = 'transactionid' AND ahead.by < 2147483648);

-- Why a job with so many crashes is put aside: a suspect is claimed alone and runs alone. Null: it is not.
CREATE FUNCTION eventflow.parked_after(crashes integer) RETURNS text
LANGUAGE sql IMMUTABLE RETURN CASE WHEN crashes >= 2 THEN 'suspect' END;

-- Claim jobs for one worker, which holds one lease for all of them: those that are ready, and ahead of time
-- those that will be soon.
--   queues: null: all. names, versions: what it can run, pairwise. ready, ahead: most jobs of each.
--   parked: take jobs too that other workers put aside as unknown to them.
--   suspect: take one job that may have killed workers, and no other.
--   look_from_us: from this instant on see again what is left in each range.
--   settled_xid: transactions before this have been open for so long that nobody waits for them.
-- Returns at least one row. The first columns are the same in all: now_us, open (false: the worker was closed,
-- nothing is claimed), split_us (what was ready by then counts as ready), next_us (the earliest job within two
-- seconds beyond the horizon, or null). Only in the first row, if it looked: open_xid (the oldest transaction that
-- was open), oldest_xid (the same, not counting settled ones), next_xid (see next_free_xid), and pairwise left_ranges
-- and left_us (the earliest ready job that was not claimed, 0 if there is none). Then the job, or nulls.
CREATE FUNCTION eventflow.claim_jobs(
    worker_id uuid, queues text[], names text[], versions integer[], ready integer, ahead integer, horizon_us bigint,
    parked boolean, suspect boolean, look_from_us bigint, settled_xid bigint, bounds_us bigint[]
) RETURNS TABLE (
    now_us bigint, open boolean, split_us bigint, next_us bigint,
    open_xid bigint, oldest_xid bigint, next_xid bigint, left_ranges integer[], left_us bigint[],
    id uuid, claim_no integer, attempt integer, crashes integer, due_us bigint, ready_us bigint, name text,
    version integer, payload text, headers text, retry text, timeout_us bigint
)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    -- The start of the caller's statement: stable, so that it bounds index scans; before this snapshot was taken.
    now timestamptz := statement_timestamp();
    horizon timestamptz := now + claim_jobs.horizon_us * interval '1 microsecond';
    look boolean := eventflow.microseconds(now) >= claim_jobs.look_from_us;
BEGIN
RETURN QUERY
WITH me AS MATERIALIZED (
    -- Closing a worker takes this row FOR UPDATE: it waits for claims under way, and none follows.
    SELECT w.id FROM eventflow.worker AS w
    WHERE w.id = claim_jobs.worker_id AND w.closed_at IS NULL FOR KEY SHARE
), known AS MATERIALIZED (
    SELECT k.name, k.version FROM unnest(claim_jobs.names, claim_jobs.versions) AS k (name, version)
), ranges AS MATERIALIZED (
    -- Queues of equal priority take turns at being first. A range is only opened when those before it did not fill
    -- the claim: a nested loop keeps their order.
    SELECT r.* FROM eventflow.claim_ranges(claim_jobs.queues, claim_jobs.bounds_us) AS r
    WHERE EXISTS (SELECT FROM me)
    ORDER BY r.priority, random()
), ready AS MATERIALIZED (
    SELECT j.id FROM ranges AS r CROSS JOIN LATERAL (
        SELECT p.id FROM known AS k CROSS JOIN LATERAL (
            SELECT w.id FROM eventflow.job AS w
            WHERE w.parked = 'unknown' AND w.name = k.name AND w.version = k.version
              AND w.queue_id = r.queue_id AND w.lane = 0 AND w.priority = r.priority AND w.ready_at <= now
            ORDER BY w.ready_at, w.id LIMIT claim_jobs.ready
            FOR UPDATE SKIP LOCKED
        ) AS p WHERE claim_jobs.parked
        UNION ALL
        SELECT o.id FROM (
            SELECT s.id FROM known AS k CROSS JOIN LATERAL (
                SELECT w.id, w.ready_at FROM eventflow.job AS w
                WHERE w.parked = 'suspect' AND w.name = k.name AND w.version = k.version
                  AND w.queue_id = r.queue_id AND w.lane = 0 AND w.priority = r.priority AND w.ready_at <= now
                ORDER BY w.ready_at, w.id LIMIT 1
                FOR UPDATE SKIP LOCKED
            ) AS s WHERE claim_jobs.suspect
            ORDER BY s.ready_at, s.id LIMIT 1  -- of all names
        ) AS o
        UNION ALL
        SELECT u.id FROM (
            SELECT w.id FROM eventflow.job AS w
            WHERE w.queue_id = r.queue_id AND w.lane = 0 AND w.priority = r.priority AND w.parked IS NULL
              AND w.ready_at >= r.bound AND w.ready_at <= now
              AND (w.name, w.version) IN (SELECT k.name, k.version FROM known AS k)
            ORDER BY w.ready_at, w.id LIMIT claim_jobs.ready
            FOR UPDATE SKIP LOCKED
        ) AS u WHERE NOT claim_jobs.suspect
    ) AS j LIMIT CASE WHEN claim_jobs.suspect THEN 1 ELSE claim_jobs.ready END
), ahead AS MATERIALIZED (
    SELECT j.id FROM ranges AS r CROSS JOIN LATERAL (
        SELECT w.id FROM eventflow.job AS w
        WHERE w.queue_id = r.queue_id AND w.lane = 0 AND w.priority = r.priority AND w.parked IS NULL
          AND w.ready_at > now AND w.ready_at <= horizon
          AND (w.name, w.version) IN (SELECT k.name, k.version FROM known AS k)
        ORDER BY w.ready_at, w.id LIMIT claim_jobs.ahead
        FOR UPDATE SKIP LOCKED
    ) AS j WHERE NOT claim_jobs.suspect LIMIT claim_jobs.ahead
), taken AS MATERIALIZED (
    SELECT ready.id FROM ready UNION ALL SELECT ahead.id FROM ahead
), later AS (
    SELECT min(j.ready_at) AS ready_at FROM ranges AS r CROSS JOIN LATERAL (
        SELECT w.ready_at FROM eventflow.job AS w
        WHERE w.queue_id = r.queue_id AND w.lane = 0 AND w.priority = r.priority AND w.parked IS NULL
          -- Later ones are the next tick's to see: what nobody here can run may wait there in great numbers.
          AND w.ready_at > horizon AND w.ready_at <= horizon + interval '2 seconds'
          AND (w.name, w.version) IN (SELECT k.name, k.version FROM known AS k)
        ORDER BY w.ready_at, w.id LIMIT 1
    ) AS j
), unclaimed AS MATERIALIZED (
    SELECT r.number, (
        SELECT w.ready_at FROM eventflow.job AS w
        WHERE w.queue_id = r.queue_id AND w.lane = 0 AND w.priority = r.priority AND w.parked IS NULL
          AND w.ready_at >= r.bound AND w.ready_at <= now AND w.id NOT IN (SELECT taken.id FROM taken)
        ORDER BY w.ready_at, w.id LIMIT 1
    ) AS ready_at FROM ranges AS r WHERE look
), claimed AS (
    -- By an array, not a join, whose order would be free. By id, not by ctid: that leaves out a row which changed
    -- between this statement's snapshot and its lock.
    DELETE FROM eventflow.job AS w WHERE w.id = ANY (ARRAY(SELECT taken.id FROM taken)) RETURNING w.*
), moved AS (
    INSERT INTO eventflow.running AS m (
        id, worker_id, claimed_at, queue_id, lane, priority, due_at, ready_at, expires_at, created_at, name, version,
        payload, headers, tags, aggregate_id, key, batch_id, retry, timeout_us, attempt, crashes, claim_no,
        past_attempts
    )
    SELECT
        c.id, claim_jobs.worker_id, now, c.queue_id, c.lane, c.priority, c.due_at, c.ready_at, c.expires_at,
        c.created_at, c.name, c.version, c.payload, c.headers, c.tags, c.aggregate_id, c.key, c.batch_id, c.retry,
        c.timeout_us, least(c.attempt, 999999999) + 1, c.crashes, least(c.claim_no, 999999999) + 1, c.past_attempts
    FROM claimed AS c
    ON CONFLICT (id) DO NOTHING  -- a client inserted the job again while it runs
    RETURNING m.*
), answer AS (
    SELECT m.*, look AND row_number() OVER (ORDER BY m.ready_at, m.id) = 1 AS looked
    FROM (VALUES (true)) AS once LEFT JOIN moved AS m ON true
)
SELECT
    (SELECT eventflow.microseconds(clock_timestamp())), EXISTS (SELECT FROM me), eventflow.microseconds(now),
    (SELECT eventflow.microseconds(later.ready_at) FROM later),
    CASE WHEN a.looked THEN pg_snapshot_xmin(pg_current_snapshot())::text::bigint END,
    CASE WHEN a.looked THEN eventflow.oldest_open_xid(pg_current_snapshot(), claim_jobs.settled_xid) END,
    CASE WHEN a.looked THEN eventflow.next_free_xid(pg_current_snapshot()) END,
    CASE WHEN a.looked THEN ARRAY(SELECT u.number FROM unclaimed AS u ORDER BY u.number) END,
    CASE WHEN a.looked THEN
        ARRAY(SELECT coalesce(eventflow.microseconds(u.ready_at), 0) FROM unclaimed AS u ORDER BY u.number)
    END,
    a.id, a.claim_no, a.attempt, a.crashes, eventflow.microseconds(a.due_at), eventflow.microseconds(a.ready_at),
    a.name, a.version, a.payload::text, a.headers::text, a.retry::text, a.timeout_us
FROM answer AS a
ORDER BY a.ready_at, a.id;  -- RETURNING promises no order
END
$$;

-- One look at everything a worker wants to know once a second. Writes nothing.
-- Returns one row: now_us, next_us (when the earliest claimable job of the next two seconds is ready, or null), open,
-- server, blocked (among the first ready jobs are some it cannot run), parked (others put jobs aside that it can run),
-- suspect_us (since when a job waits that must run alone, or null), my_turn (of the open workers of the same queues it
-- is this one's second, or longer while a suspect waits); looked_us (when), and as with a claim open_xid, oldest_xid,
-- next_xid, left_ranges, left_us; then arrays: peers (other open workers' ids), beats, gone (their proven session is
-- missing), and the signals to this worker.
CREATE FUNCTION eventflow.tick_worker(
    worker_id uuid, queues text[], names text[], versions integer[], settled_xid bigint, bounds_us bigint[]
) RETURNS TABLE (
    now_us bigint, next_us bigint, open boolean, server text, blocked boolean, parked boolean, suspect_us bigint,
    my_turn boolean, looked_us bigint, open_xid bigint, oldest_xid bigint, next_xid bigint, left_ranges integer[],
    left_us bigint[], peers text[], beats bigint[], gone boolean[], signal_jobs text[], signal_claims integer[],
    signal_kinds text[], signal_dues bigint[]
)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    now timestamptz := statement_timestamp();
BEGIN
RETURN QUERY
WITH known AS MATERIALIZED (
    SELECT k.name, k.version FROM unnest(tick_worker.names, tick_worker.versions) AS k (name, version)
), ranges AS MATERIALIZED (
    SELECT r.* FROM eventflow.claim_ranges(tick_worker.queues, tick_worker.bounds_us) AS r
), unclaimed AS MATERIALIZED (
    SELECT r.number, (
        SELECT w.ready_at FROM eventflow.job AS w
        WHERE w.queue_id = r.queue_id AND w.lane = 0 AND w.priority = r.priority AND w.parked IS NULL
          AND w.ready_at >= r.bound AND w.ready_at <= now
        ORDER BY w.ready_at, w.id LIMIT 1
    ) AS ready_at FROM ranges AS r
), put_aside AS MATERIALIZED (
    SELECT p.parked, min(p.ready_at) AS ready_at
    FROM (VALUES ('unknown'), ('suspect')) AS why (parked) CROSS JOIN known AS k CROSS JOIN ranges AS r
    CROSS JOIN LATERAL (
        SELECT w.parked, w.ready_at FROM eventflow.job AS w
        WHERE w.parked = why.parked AND w.name = k.name AND w.version = k.version
          AND w.queue_id = r.queue_id AND w.lane = 0 AND w.priority = r.priority AND w.ready_at <= now
        ORDER BY w.ready_at LIMIT 1
    ) AS p
    WHERE EXISTS (SELECT FROM eventflow.job AS w WHERE w.parked IS NOT NULL)
    GROUP BY p.parked
), turn AS MATERIALIZED (
    -- A worker may have to wait for its jobs to end before it takes a suspect: turns grow while one waits.
    SELECT 2 ^ floor(log(2, greatest(1, extract(epoch FROM now - min(p.ready_at)) / 4))) AS seconds
    FROM put_aside AS p WHERE p.parked = 'suspect'
), server AS MATERIALIZED (
    SELECT eventflow.microseconds(pg_postmaster_start_time())::text
        || '/' || (SELECT timeline_id FROM pg_control_checkpoint()) AS id
), sessions AS MATERIALIZED (
    SELECT (l.classid::bigint << 32) | l.objid::bigint AS key FROM pg_locks AS l
    WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
      AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
), crew AS MATERIALIZED (
    SELECT w.id, w.beat, w.queues IS NOT DISTINCT FROM tick_worker.queues AS alike,
        w.session_key IS NOT NULL AND w.session_server = (SELECT server.id FROM server)
            AND NOT EXISTS (SELECT FROM sessions AS s WHERE s.key = w.session_key) AS gone
    FROM eventflow.worker AS w WHERE w.closed_at IS NULL
), peer AS (
    SELECT c.* FROM crew AS c WHERE c.id <> tick_worker.worker_id
), asked AS (
    SELECT s.job_id, s.claim_no, s.kind, eventflow.microseconds(s.due_at) AS due_us
    FROM eventflow.signal AS s WHERE s.worker_id = tick_worker.worker_id
)
SELECT
    eventflow.microseconds(clock_timestamp()),
    (
        SELECT eventflow.microseconds(min(j.ready_at)) FROM ranges AS r CROSS JOIN LATERAL (
            SELECT w.ready_at FROM eventflow.job AS w
            WHERE w.queue_id = r.queue_id AND w.lane = 0 AND w.priority = r.priority AND w.parked IS NULL
              AND w.ready_at >= r.bound AND w.ready_at <= now + interval '2 seconds'  -- there is another tick before
              AND (w.name, w.version) IN (SELECT k.name, k.version FROM known AS k)
            ORDER BY w.ready_at, w.id LIMIT 1
        ) AS j
    ),
    EXISTS (SELECT FROM crew AS c WHERE c.id = tick_worker.worker_id),
    (SELECT server.id FROM server),
    EXISTS (
        SELECT FROM ranges AS r CROSS JOIN LATERAL (
            SELECT w.name, w.version FROM eventflow.job AS w
            WHERE w.queue_id = r.queue_id AND w.lane = 0 AND w.priority = r.priority AND w.parked IS NULL
              AND w.ready_at >= r.bound AND w.ready_at <= now
            ORDER BY w.ready_at, w.id LIMIT 100
        ) AS j WHERE (j.name, j.version) NOT IN (SELECT k.name, k.version FROM known AS k)
    ),
    EXISTS (SELECT FROM put_aside AS p WHERE p.parked = 'unknown'),
    (SELECT eventflow.microseconds(p.ready_at) FROM put_aside AS p WHERE p.parked = 'suspect'),
    (
        SELECT floor(extract(epoch FROM now) / (SELECT turn.seconds FROM turn))::bigint % greatest(count(*), 1)
            = count(*) FILTER (WHERE c.id < tick_worker.worker_id)
        FROM crew AS c WHERE c.alike
    ),
    eventflow.microseconds(now),
    pg_snapshot_xmin(pg_current_snapshot())::text::bigint,
    eventflow.oldest_open_xid(pg_current_snapshot(), tick_worker.settled_xid),
    eventflow.next_free_xid(pg_current_snapshot()),
    ARRAY(SELECT u.number FROM unclaimed AS u ORDER BY u.number),
    ARRAY(SELECT coalesce(eventflow.microseconds(u.ready_at), 0) FROM unclaimed AS u ORDER BY u.number),
    ARRAY(SELECT peer.id::text FROM peer ORDER BY peer.id),
    ARRAY(SELECT peer.beat FROM peer ORDER BY peer.id),
    ARRAY(SELECT peer.gone FROM peer ORDER BY peer.id),
    ARRAY(SELECT a.job_id::text FROM asked AS a ORDER BY a.job_id, a.kind),
    ARRAY(SELECT a.claim_no FROM asked AS a ORDER BY a.job_id, a.kind),
    ARRAY(SELECT a.kind FROM asked AS a ORDER BY a.job_id, a.kind),
    ARRAY(SELECT a.due_us FROM asked AS a ORDER BY a.job_id, a.kind);
END
$$;

-- Put ready jobs that a worker cannot run out of the way of its claims, until one that can comes by.
-- Looks at the first 10,000 of each range. Returns how many it put aside, at most 5,000.
CREATE FUNCTION eventflow.park_unknown_jobs(queues text[], names text[], versions integer[], bounds_us bigint[])
RETURNS integer
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    now timestamptz := statement_timestamp();
    parked integer;
BEGIN
WITH known AS MATERIALIZED (
    SELECT k.name, k.version FROM unnest(park_unknown_jobs.names, park_unknown_jobs.versions) AS k (name, version)
), unknown AS MATERIALIZED (
    SELECT j.id FROM eventflow.claim_ranges(park_unknown_jobs.queues, park_unknown_jobs.bounds_us) AS r
    CROSS JOIN LATERAL (
        SELECT w.id, w.name, w.version FROM eventflow.job AS w
        WHERE w.queue_id = r.queue_id AND w.lane = 0 AND w.priority = r.priority AND w.parked IS NULL
          AND w.ready_at >= r.bound AND w.ready_at <= now
        ORDER BY w.ready_at, w.id LIMIT 10000
    ) AS j
    WHERE (j.name, j.version) NOT IN (SELECT k.name, k.version FROM known AS k)
    LIMIT 5000
), free AS MATERIALIZED (
    SELECT w.id FROM eventflow.job AS w WHERE w.id = ANY (ARRAY(SELECT unknown.id FROM unknown))
    FOR UPDATE SKIP LOCKED
)
UPDATE eventflow.job AS w SET parked = 'unknown'
WHERE w.id = ANY (ARRAY(SELECT free.id FROM free)) AND w.parked IS NULL;
GET DIAGNOSTICS parked = ROW_COUNT;
RETURN parked;
END
$$;

-- Bring jobs back that claims have passed by: rows below a bound, of a transaction that was open for very long, or
-- written by somebody who does not know the rule that no job becomes ready in the past. They are ready now instead.
-- Walks what dead entries there are, so one worker does it at a time. Returns how many it found, at most 10,000.
CREATE FUNCTION eventflow.sweep_jobs(bounds_us bigint[]) RETURNS integer
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    swept integer;
BEGIN
WITH passed AS MATERIALIZED (
    SELECT j.id FROM eventflow.claim_ranges(NULL, sweep_jobs.bounds_us) AS r CROSS JOIN LATERAL (
        SELECT w.id FROM eventflow.job AS w
        WHERE w.queue_id = r.queue_id AND w.lane = 0 AND w.priority = r.priority AND w.parked IS NULL
          AND w.ready_at < r.bound
        ORDER BY w.ready_at, w.id LIMIT 10000
        FOR UPDATE SKIP LOCKED
    ) AS j LIMIT 10000
)
UPDATE eventflow.job AS w SET ready_at = greatest(w.due_at, clock_timestamp())
WHERE w.id = ANY (ARRAY(SELECT passed.id FROM passed));
GET DIAGNOSTICS swept = ROW_COUNT;
RETURN swept;
END
$$;

-- End claims whose jobs will not run again, fenced by worker and claim number.
--   Pairwise: states (of job_history), started_us, retention_days (0: not kept), errors (JSON or null).
-- Returns the ids that were still this worker's; of the others nothing is changed.
-- A job whose day has no partition is not kept: making one is maintain_history()'s, and completion never waits.
CREATE FUNCTION eventflow.complete_jobs(
    worker_id uuid, ids uuid[], claim_nos integer[], states text[], started_us bigint[], retention_days integer[],
    errors text[]
) RETURNS SETOF uuid
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
RETURN QUERY
WITH given AS MATERIALIZED (
    SELECT g.* FROM unnest(
        complete_jobs.ids, complete_jobs.claim_nos, complete_jobs.states, complete_jobs.started_us,
        complete_jobs.retention_days, complete_jobs.errors
    ) AS g (id, claim_no, state, started_us, retention_days, error)
), days AS MATERIALIZED (
    SELECT d.retention_days, d.expires_on FROM (
        SELECT DISTINCT g.retention_days,
            (statement_timestamp() AT TIME ZONE 'UTC')::date + g.retention_days AS expires_on
        FROM given AS g WHERE g.retention_days > 0
    ) AS d WHERE eventflow.history_partition(d.expires_on) IS NOT NULL
), ended AS (
    DELETE FROM eventflow.running AS r WHERE r.id = ANY (ARRAY(
        SELECT h.id FROM given AS g CROSS JOIN LATERAL (
            SELECT x.id, x.worker_id, x.claim_no FROM eventflow.running AS x WHERE x.id = g.id OFFSET 0
        ) AS h WHERE h.worker_id = complete_jobs.worker_id AND h.claim_no = g.claim_no
    ))
    RETURNING r.*
), kept AS (
    INSERT INTO eventflow.job_history (
        id, expires_on, state, queue_id, priority, due_at, created_at, name, version, payload, headers, tags,
        aggregate_id, key, batch_id, attempt, crashes, claim_no, past_attempts, worker_id, started_at, finished_at
    )
    SELECT
        e.id, days.expires_on, g.state, e.queue_id, e.priority, e.due_at, e.created_at, e.name, e.version, e.payload,
        e.headers, e.tags, e.aggregate_id, e.key, e.batch_id, e.attempt, e.crashes, e.claim_no,
        CASE WHEN g.error IS NULL THEN e.past_attempts ELSE
            eventflow.add_attempt(e.past_attempts, jsonb_build_object(
                'attempt', e.attempt, 'worker', e.worker_id, 'started_at', eventflow.instant(g.started_us),
                'ended_at', statement_timestamp(), 'outcome', g.state, 'error', g.error::jsonb))
        END,
        e.worker_id, eventflow.instant(g.started_us), statement_timestamp()
    FROM ended AS e JOIN given AS g USING (id) JOIN days USING (retention_days)
), answered AS (
    DELETE FROM eventflow.signal AS s
    WHERE s.worker_id = complete_jobs.worker_id AND s.job_id IN (SELECT e.id FROM ended AS e)
)
SELECT e.id FROM ended AS e;
END
$$;

-- End claims whose jobs wait again, fenced by worker and claim number: retries, and those that are given back. One
-- whose cancellation was requested ends instead; one given back takes the due time that was requested.
--   Pairwise: at_us (a new due time) or delay_us (from now; both null: at the due time), refunds (attempts given
--   back), started_us, errors (JSON or null).
--   crashed: the worker died, which is counted, and noted with the attempt; at the fifth a job becomes a dead letter.
-- Returns the ids that were still this worker's; of the others nothing is changed.
CREATE FUNCTION eventflow.return_jobs(
    worker_id uuid, ids uuid[], claim_nos integer[], at_us bigint[], delay_us bigint[], refunds integer[],
    started_us bigint[], errors text[], crashed boolean
) RETURNS SETOF uuid
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
RETURN QUERY
WITH given AS MATERIALIZED (
    SELECT g.* FROM unnest(
        return_jobs.ids, return_jobs.claim_nos, return_jobs.at_us, return_jobs.delay_us, return_jobs.refunds,
        return_jobs.started_us, return_jobs.errors
    ) AS g (id, claim_no, at_us, delay_us, refund, started_us, error)
), ended AS (
    DELETE FROM eventflow.running AS r WHERE r.id = ANY (ARRAY(
        SELECT h.id FROM given AS g CROSS JOIN LATERAL (
            SELECT x.id, x.worker_id, x.claim_no FROM eventflow.running AS x WHERE x.id = g.id OFFSET 0
        ) AS h WHERE h.worker_id = return_jobs.worker_id AND h.claim_no = g.claim_no
    ))
    RETURNING r.*
), answered AS (
    DELETE FROM eventflow.signal AS s
    WHERE s.worker_id = return_jobs.worker_id AND s.job_id IN (SELECT e.id FROM ended AS e)
    RETURNING s.job_id AS id, s.claim_no, s.kind, s.due_at
), cancelled AS (
    -- Somebody was told that the job's end was requested: it does not wait again.
    INSERT INTO eventflow.job_history (
        id, expires_on, state, queue_id, priority, due_at, created_at, name, version, payload, headers, tags,
        aggregate_id, key, batch_id, attempt, crashes, claim_no, past_attempts, worker_id, finished_at
    )
    SELECT
        e.id, (statement_timestamp() AT TIME ZONE 'UTC')::date + 1, 'cancelled', e.queue_id, e.priority, e.due_at,
        e.created_at, e.name, e.version, e.payload, e.headers, e.tags, e.aggregate_id, e.key, e.batch_id, e.attempt,
        e.crashes, e.claim_no, e.past_attempts, e.worker_id, statement_timestamp()
    FROM ended AS e JOIN answered AS a USING (id, claim_no)
    WHERE a.kind = 'cancel'
      AND eventflow.history_partition((statement_timestamp() AT TIME ZONE 'UTC')::date + 1) IS NOT NULL
    ON CONFLICT (id, expires_on) DO NOTHING  -- a client used the id of a job that ended today for another
), kept AS MATERIALIZED (
    SELECT e.*, g.delay_us, clock_timestamp() AS now,
        greatest(e.attempt - g.refund, 0) AS attempts_used,
        least(e.crashes, 999999999) + return_jobs.crashed::integer AS deaths,
        return_jobs.crashed AND e.crashes >= 4 AS is_deadly,
        coalesce(moved.due_at, eventflow.instant(g.at_us), e.due_at) AS next_due_at,
        CASE WHEN return_jobs.crashed OR g.error IS NOT NULL THEN
            eventflow.add_attempt(e.past_attempts, jsonb_build_object(
                'attempt', e.attempt, 'worker', e.worker_id,
                'started_at', coalesce(eventflow.instant(g.started_us), e.claimed_at), 'ended_at', clock_timestamp(),
                'outcome', CASE WHEN return_jobs.crashed THEN 'worker_died' ELSE 'retry' END, 'error', g.error::jsonb))
            ELSE e.past_attempts
        END AS attempts
    FROM ended AS e JOIN given AS g USING (id, claim_no)
    LEFT JOIN answered AS moved
        ON moved.id = e.id AND moved.claim_no = e.claim_no AND moved.kind = 'reschedule' AND g.refund > 0
    WHERE NOT EXISTS (
        SELECT FROM answered AS a WHERE a.id = e.id AND a.claim_no = e.claim_no AND a.kind = 'cancel'
    )
), buried AS (
    INSERT INTO eventflow.dead_letter (
        id, died_at, reason, error, queue_id, lane, priority, due_at, created_at, name, version, payload, headers,
        tags, aggregate_id, key, batch_id, retry, timeout_us, attempt, crashes, claim_no, past_attempts, worker_id
    )
    SELECT
        k.id, statement_timestamp(), 'worker_died', json_build_object(
            'type', 'WorkerDied', 'message', format('%s workers died while they held this job', k.deaths),
            'traceback', ''),
        k.queue_id, k.lane, k.priority, k.due_at, k.created_at, k.name, k.version, k.payload, k.headers, k.tags,
        k.aggregate_id, k.key, k.batch_id, k.retry, k.timeout_us, k.attempt, k.deaths, k.claim_no, k.attempts,
        k.worker_id
    FROM kept AS k WHERE k.is_deadly
    ON CONFLICT (id) DO NOTHING  -- a client used the id of a dead letter for another job
), waiting AS (
    INSERT INTO eventflow.job (
        id, queue_id, lane, priority, due_at, ready_at, expires_at, created_at, name, version, payload, headers, tags,
        aggregate_id, key, batch_id, retry, timeout_us, attempt, crashes, claim_no, past_attempts, parked
    )
    SELECT
        k.id, k.queue_id, k.lane, k.priority, k.next_due_at,
        greatest(k.next_due_at, k.now + coalesce(k.delay_us, 0) * interval '1 microsecond'),
        k.expires_at, k.created_at, k.name, k.version, k.payload, k.headers, k.tags, k.aggregate_id, k.key,
        k.batch_id, k.retry, k.timeout_us, k.attempts_used, k.deaths, k.claim_no, k.attempts,
        eventflow.parked_after(k.deaths)
    FROM kept AS k WHERE NOT k.is_deadly
    ON CONFLICT (id) DO NOTHING  -- a client inserted the claimed job again: that one waits
)
SELECT e.id FROM ended AS e;
END
$$;

-- End claims whose jobs become dead letters, fenced by worker and claim number.
--   Pairwise: reasons, started_us, errors (JSON or null).
-- Returns the ids that were still this worker's; of the others nothing is changed.
CREATE FUNCTION eventflow.bury_jobs(
    worker_id uuid, ids uuid[], claim_nos integer[], reasons text[], started_us bigint[], errors text[]
) RETURNS SETOF uuid
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
RETURN QUERY
WITH given AS MATERIALIZED (
    SELECT g.* FROM unnest(
        bury_jobs.ids, bury_jobs.claim_nos, bury_jobs.reasons, bury_jobs.started_us, bury_jobs.errors
    ) AS g (id, claim_no, reason, started_us, error)
), ended AS (
    DELETE FROM eventflow.running AS r WHERE r.id = ANY (ARRAY(
        SELECT h.id FROM given AS g CROSS JOIN LATERAL (
            SELECT x.id, x.worker_id, x.claim_no FROM eventflow.running AS x WHERE x.id = g.id OFFSET 0
        ) AS h WHERE h.worker_id = bury_jobs.worker_id AND h.claim_no = g.claim_no
    ))
    RETURNING r.*
), buried AS (
    INSERT INTO eventflow.dead_letter (
        id, died_at, reason, error, queue_id, lane, priority, due_at, created_at, name, version, payload, headers,
        tags, aggregate_id, key, batch_id, retry, timeout_us, attempt, crashes, claim_no, past_attempts, worker_id
    )
    SELECT
        e.id, statement_timestamp(), g.reason, g.error::json, e.queue_id, e.lane, e.priority, e.due_at, e.created_at,
        e.name, e.version, e.payload, e.headers, e.tags, e.aggregate_id, e.key, e.batch_id, e.retry, e.timeout_us,
        e.attempt, e.crashes, e.claim_no,
        CASE WHEN g.reason = 'refused_by_store' THEN e.past_attempts ELSE  -- which may be what it refused
            eventflow.add_attempt(e.past_attempts, jsonb_build_object(
                'attempt', e.attempt, 'worker', e.worker_id, 'started_at', eventflow.instant(g.started_us),
                'ended_at', statement_timestamp(), 'outcome', 'dead', 'error', g.error::jsonb))
        END,
        e.worker_id
    FROM ended AS e JOIN given AS g USING (id)
    ON CONFLICT (id) DO NOTHING  -- a client used the id of a dead letter for another job
), answered AS (
    DELETE FROM eventflow.signal AS s
    WHERE s.worker_id = bury_jobs.worker_id AND s.job_id IN (SELECT e.id FROM ended AS e)
)
SELECT e.id FROM ended AS e;
END
$$;

-- Give all jobs of a closed worker back, ready now; see return_jobs. Returns the number of jobs.
CREATE FUNCTION eventflow.release_claims(worker_id uuid, crashed boolean) RETURNS bigint
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    ids uuid[];
    claim_nos integer[];
    released bigint;
BEGIN
SELECT coalesce(array_agg(r.id), '{}'), array_agg(r.claim_no) INTO ids, claim_nos
FROM eventflow.running AS r WHERE r.worker_id = release_claims.worker_id;
SELECT count(*) INTO released FROM eventflow.return_jobs(
    release_claims.worker_id, ids, claim_nos, at_us => NULL, delay_us => NULL,
    refunds => array_fill(1, ARRAY[cardinality(ids)]), started_us => NULL, errors => NULL,
    crashed => release_claims.crashed
);
DELETE FROM eventflow.signal AS s WHERE s.worker_id = release_claims.worker_id;  -- sent while their claims ended
RETURN released;
END
$$;

-- Nothing left to choose for the planner; and names mean what they mean here, whatever the session's search path.
-- Sorting is off, so that an ordered range is never read through another index and sorted. What ends claims reads every
-- row by its id, and joins only what it was given: hashed, or a batch would cost its square.
DO $$
DECLARE
    hot text;
    hash_joins text;
    pin text;
BEGIN
    FOR hot, hash_joins IN
        SELECT p.oid::pg_catalog.regprocedure::text, h.hash_joins FROM pg_catalog.pg_proc AS p JOIN (VALUES
            ('claim_jobs', 'off'), ('tick_worker', 'off'), ('park_unknown_jobs', 'off'), ('sweep_jobs', 'off'),
            ('complete_jobs', 'on'), ('return_jobs', 'on'), ('bury_jobs', 'on'), ('release_claims', 'on')
        ) AS h (name, hash_joins) ON p.proname = h.name
        WHERE p.pronamespace = 'eventflow'::pg_catalog.regnamespace
    LOOP
        FOREACH pin IN ARRAY ARRAY[
            'search_path = pg_catalog, pg_temp', 'plan_cache_mode = force_generic_plan', 'jit = off',
            'enable_seqscan = off', 'enable_bitmapscan = off', 'enable_hashjoin = ' || hash_joins,
            'enable_mergejoin = off', 'enable_sort = off', 'max_parallel_workers_per_gather = 0'
        ] LOOP
            EXECUTE pg_catalog.format('ALTER FUNCTION %s SET %s', hot, pin);
        END LOOP;
    END LOOP;
END
$$;

-- Ownership and grants, for the roles that exist.
DO $$
DECLARE
    made text;
BEGIN
    IF pg_catalog.to_regrole('eventflow_owner') IS NULL THEN
        RETURN;
    END IF;
    FOR made IN
        SELECT p.oid::pg_catalog.regprocedure::text FROM pg_catalog.pg_proc AS p
        WHERE p.pronamespace = 'eventflow'::pg_catalog.regnamespace AND p.proname IN (
            'claim_jobs', 'tick_worker', 'park_unknown_jobs', 'sweep_jobs', 'complete_jobs', 'return_jobs', 'bury_jobs',
            'release_claims', 'microseconds', 'instant', 'claim_ranges', 'add_attempt', 'oldest_open_xid',
            'next_free_xid', 'parked_after')
    LOOP
        EXECUTE pg_catalog.format('ALTER FUNCTION %s OWNER TO eventflow_owner', made);
        EXECUTE pg_catalog.format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', made);
        EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO eventflow_worker', made);
    END LOOP;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE NOTICE '% may not administer the roles of another: they get no rights here (%)', current_user, SQLERRM;
END
$$;
