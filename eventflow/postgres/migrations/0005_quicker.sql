-- Claims and inserts with less to do for each: the same arguments, the same promises.

-- Claim jobs for one worker; arguments as before. A statement for each step, so that a claim pays only for those it
-- needs: one that finds nothing writes nothing, and so waits for no flush.
-- The first row has the answer's columns, those after it the jobs'. The last row's now_us is the latest.
CREATE OR REPLACE FUNCTION eventflow.claim_jobs(
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
    -- The start of the caller's statement: stable, so that it bounds index scans; before any snapshot was taken.
    now timestamptz := statement_timestamp();
    horizon timestamptz := now + claim_jobs.horizon_us * interval '1 microsecond';
    taken uuid[];
BEGIN
split_us := eventflow.microseconds(now);
IF claim_jobs.suspect THEN
    WITH ranges AS MATERIALIZED (
        -- Queues of equal priority take turns at being first; a nested loop keeps the order.
        SELECT r.* FROM eventflow.claim_ranges(claim_jobs.queues, claim_jobs.bounds_us) AS r
        ORDER BY r.priority, random()
    )
    SELECT EXISTS (
        SELECT FROM eventflow.worker AS w WHERE w.id = claim_jobs.worker_id AND w.closed_at IS NULL
    ), ARRAY(
        SELECT o.id FROM ranges AS r CROSS JOIN LATERAL (
            SELECT s.id FROM unnest(claim_jobs.names, claim_jobs.versions) AS k (name, version) CROSS JOIN LATERAL (
                SELECT w.id, w.ready_at FROM eventflow.job AS w
                WHERE w.parked = 'suspect' AND w.name = k.name AND w.version = k.version
                  AND w.queue_id = r.queue_id AND w.lane = 0 AND w.priority = r.priority AND w.ready_at <= now
                ORDER BY w.ready_at, w.id LIMIT 1
                FOR UPDATE SKIP LOCKED
            ) AS s ORDER BY s.ready_at, s.id LIMIT 1  -- of all names
        ) AS o LIMIT 1
    ) INTO open, taken;
ELSE
    WITH me AS MATERIALIZED (
        SELECT w.id FROM eventflow.worker AS w WHERE w.id = claim_jobs.worker_id AND w.closed_at IS NULL
    ), known AS MATERIALIZED (
        SELECT k.name, k.version FROM unnest(claim_jobs.names, claim_jobs.versions) AS k (name, version)
    ), ranges AS MATERIALIZED (
        -- A range is only opened when those before it did not fill the claim.
        SELECT r.* FROM eventflow.claim_ranges(claim_jobs.queues, claim_jobs.bounds_us) AS r
        WHERE EXISTS (SELECT FROM me)
        ORDER BY r.priority, random()
    ), ready AS (
        SELECT j.id FROM ranges AS r CROSS JOIN LATERAL (
            SELECT p.id FROM known AS k CROSS JOIN LATERAL (
                SELECT w.id FROM eventflow.job AS w
                WHERE w.parked = 'unknown' AND w.name = k.name AND w.version = k.version
                  AND w.queue_id = r.queue_id AND w.lane = 0 AND w.priority = r.priority AND w.ready_at <= now
                ORDER BY w.ready_at, w.id LIMIT claim_jobs.ready
                FOR UPDATE SKIP LOCKED
            ) AS p WHERE claim_jobs.parked
            UNION ALL
            SELECT u.id FROM (
                SELECT w.id FROM eventflow.job AS w
                WHERE w.queue_id = r.queue_id AND w.lane = 0 AND w.priority = r.priority AND w.parked IS NULL
                  AND w.ready_at >= r.bound AND w.ready_at <= now
                  AND (w.name, w.version) IN (SELECT k.name, k.version FROM known AS k)
                ORDER BY w.ready_at, w.id LIMIT claim_jobs.ready
                FOR UPDATE SKIP LOCKED
            ) AS u
        ) AS j LIMIT claim_jobs.ready
    ), ahead AS (
        SELECT j.id FROM ranges AS r CROSS JOIN LATERAL (
            SELECT w.id FROM eventflow.job AS w
            WHERE w.queue_id = r.queue_id AND w.lane = 0 AND w.priority = r.priority AND w.parked IS NULL
              AND w.ready_at > now AND w.ready_at <= horizon
              AND (w.name, w.version) IN (SELECT k.name, k.version FROM known AS k)
            ORDER BY w.ready_at, w.id LIMIT claim_jobs.ahead
            FOR UPDATE SKIP LOCKED
        ) AS j LIMIT claim_jobs.ahead
    ), later AS (
        SELECT min(j.ready_at) AS ready_at FROM ranges AS r CROSS JOIN LATERAL (
            SELECT w.ready_at FROM eventflow.job AS w
            WHERE w.queue_id = r.queue_id AND w.lane = 0 AND w.priority = r.priority AND w.parked IS NULL
              -- Later ones are the next tick's to see: what nobody here can run may wait there in great numbers.
              AND w.ready_at > horizon AND w.ready_at <= horizon + interval '2 seconds'
              AND (w.name, w.version) IN (SELECT k.name, k.version FROM known AS k)
            ORDER BY w.ready_at, w.id LIMIT 1
        ) AS j
    )
    SELECT EXISTS (SELECT FROM me), ARRAY(SELECT ready.id FROM ready UNION ALL SELECT ahead.id FROM ahead),
        (SELECT eventflow.microseconds(later.ready_at) FROM later)
    INTO open, taken, next_us;
END IF;
IF taken <> '{}' THEN
    -- Closing a worker takes this row FOR UPDATE: it waits for claims under way, and none follows.
    PERFORM FROM eventflow.worker AS w WHERE w.id = claim_jobs.worker_id AND w.closed_at IS NULL FOR KEY SHARE;
    IF NOT FOUND THEN
        open := false;
        taken := '{}';
    END IF;
END IF;
IF split_us >= claim_jobs.look_from_us THEN
    WITH unclaimed AS MATERIALIZED (
        SELECT r.number, (
            SELECT w.ready_at FROM eventflow.job AS w
            WHERE w.queue_id = r.queue_id AND w.lane = 0 AND w.priority = r.priority AND w.parked IS NULL
              AND w.ready_at >= r.bound AND w.ready_at <= now AND w.id NOT IN (SELECT unnest(taken))
            ORDER BY w.ready_at, w.id LIMIT 1
        ) AS ready_at FROM eventflow.claim_ranges(claim_jobs.queues, claim_jobs.bounds_us) AS r
    )
    SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint,
        eventflow.oldest_open_xid(pg_current_snapshot(), claim_jobs.settled_xid),
        eventflow.next_free_xid(pg_current_snapshot()),
        ARRAY(SELECT u.number FROM unclaimed AS u ORDER BY u.number),
        ARRAY(SELECT coalesce(eventflow.microseconds(u.ready_at), 0) FROM unclaimed AS u ORDER BY u.number)
    INTO open_xid, oldest_xid, next_xid, left_ranges, left_us;
END IF;
now_us := eventflow.microseconds(clock_timestamp());
RETURN NEXT;
IF taken <> '{}' THEN
    RETURN QUERY
    WITH claimed AS (
        -- By an array, not a join, whose order would be free.
        DELETE FROM eventflow.job AS w WHERE w.id = ANY (taken) RETURNING w.*
    ), moved AS (
        INSERT INTO eventflow.running AS m (
            id, worker_id, claimed_at, queue_id, lane, priority, due_at, ready_at, expires_at, created_at, name,
            version, payload, headers, tags, aggregate_id, key, batch_id, retry, timeout_us, attempt, crashes,
            claim_no, past_attempts
        )
        SELECT
            c.id, claim_jobs.worker_id, now, c.queue_id, c.lane, c.priority, c.due_at, c.ready_at, c.expires_at,
            c.created_at, c.name, c.version, c.payload, c.headers, c.tags, c.aggregate_id, c.key, c.batch_id,
            c.retry, c.timeout_us, least(c.attempt, 999999999) + 1, c.crashes, least(c.claim_no, 999999999) + 1,
            c.past_attempts
        FROM claimed AS c
        ON CONFLICT (id) DO NOTHING  -- a client inserted the job again while it runs
        RETURNING m.*
    )
    SELECT
        (SELECT eventflow.microseconds(clock_timestamp())), NULL::boolean, NULL::bigint, NULL::bigint, NULL::bigint,
        NULL::bigint, NULL::bigint, NULL::integer[], NULL::bigint[],
        m.id, m.claim_no, m.attempt, m.crashes, eventflow.microseconds(m.due_at), eventflow.microseconds(m.ready_at),
        m.name, m.version, m.payload::text, m.headers::text, m.retry::text, m.timeout_us
    FROM moved AS m
    ORDER BY m.ready_at, m.id;  -- RETURNING promises no order
END IF;
END
$$;

DO $$
DECLARE
    pin text;
BEGIN
    FOREACH pin IN ARRAY ARRAY[  -- replacing a function has lost them
        'search_path = pg_catalog, pg_temp', 'plan_cache_mode = force_generic_plan', 'jit = off',
        'enable_seqscan = off', 'enable_bitmapscan = off', 'enable_hashjoin = off', 'enable_mergejoin = off',
        'enable_sort = off', 'max_parallel_workers_per_gather = 0'
    ] LOOP
        EXECUTE pg_catalog.format(
            'ALTER FUNCTION %s SET %s', 'eventflow.claim_jobs'::pg_catalog.regproc::pg_catalog.regprocedure, pin);
    END LOOP;
END
$$;

-- When some process notified the workers last, in microseconds since the epoch. Outside of transactions, and not logged:
-- nobody waits for it, and if it is lost, one more notification is sent.
CREATE UNLOGGED SEQUENCE eventflow.notified_us MINVALUE 0 START 0;

-- Notify the workers, unless somebody did a moment ago: what a database can wake is shared by all who notify. Alone in
-- its transaction: then it neither waits for a flush nor holds up other commits.
--   payload: '' there may be jobs, 'signal' somebody asks something of one: this is sent in any case.
--   since_us: whoever has notified after this has done it for the caller too; null: nobody has.
-- Returns one row: is_done, wait_us (until the next should be sent), now_us.
CREATE FUNCTION eventflow.wake_workers(payload text, since_us bigint)
RETURNS TABLE (is_done boolean, wait_us bigint, now_us bigint)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    pause_us bigint;
    last_us bigint;
BEGIN
    -- A database wakes so many sessions in a second without others suffering.
    SELECT greatest(1000, count(*) * 1000000 / 1500) INTO pause_us FROM eventflow.worker AS w WHERE w.closed_at IS NULL;
    SELECT s.last_value INTO last_us FROM eventflow.notified_us AS s;
    now_us := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
    is_done := last_us > since_us AND last_us <= now_us AND payload = '';
    wait_us := greatest(0, last_us + pause_us - now_us);
    IF payload <> '' THEN
        PERFORM pg_notify('eventflow', payload);
        is_done := true;
        wait_us := pause_us;
    ELSIF is_done IS NOT TRUE AND (wait_us = 0 OR last_us > now_us) THEN  -- the clock may have been set back
        PERFORM setval('eventflow.notified_us', now_us), pg_notify('eventflow', '');
        is_done := true;
        wait_us := pause_us;
    END IF;
    is_done := is_done IS TRUE;
    RETURN NEXT;
END
$$;

-- Add jobs as insert_jobs does, commit, and then wake the workers, in a transaction of its own. Not in one of the
-- caller's.
-- Gives soonest_us, and is_done and wait_us as wake_workers; these are null if there was nothing to wake them for.
-- What commits can have no search path of its own: each name here says where it is.
CREATE PROCEDURE eventflow.insert_and_wake(
    ids uuid[], queue_ids integer[], priorities smallint[], at_us bigint[], delay_us bigint[], names text[],
    versions integer[], payloads text[], headers text[], tags text[], aggregate_ids text[], keys text[],
    retries text[], timeouts_us bigint[], wake_within_us bigint,
    OUT soonest_us bigint, OUT is_done boolean, OUT wait_us bigint
)
LANGUAGE plpgsql AS $$
BEGIN
    soonest_us := eventflow.insert_jobs(
        ids, queue_ids, priorities, at_us, delay_us, names, versions, payloads, headers, tags, aggregate_ids, keys,
        retries, timeouts_us);
    COMMIT;
    IF soonest_us OPERATOR(pg_catalog.<) wake_within_us THEN
        SELECT w.is_done, w.wait_us INTO is_done, wait_us FROM eventflow.wake_workers('', NULL) AS w;
    END IF;
END
$$;

DO $$
BEGIN
    IF pg_catalog.to_regrole('eventflow_owner') IS NULL THEN
        RETURN;
    END IF;
    ALTER SEQUENCE eventflow.notified_us OWNER TO eventflow_owner;
    GRANT SELECT ON SEQUENCE eventflow.notified_us TO eventflow_viewer;
    GRANT SELECT, UPDATE ON SEQUENCE eventflow.notified_us TO eventflow_worker, eventflow_producer;
    ALTER FUNCTION eventflow.wake_workers OWNER TO eventflow_owner;
    REVOKE ALL ON FUNCTION eventflow.wake_workers FROM PUBLIC;
    GRANT EXECUTE ON FUNCTION eventflow.wake_workers TO eventflow_worker, eventflow_producer;
    ALTER PROCEDURE eventflow.insert_and_wake OWNER TO eventflow_owner;
    REVOKE ALL ON PROCEDURE eventflow.insert_and_wake FROM PUBLIC;
    GRANT EXECUTE ON PROCEDURE eventflow.insert_and_wake TO eventflow_worker, eventflow_producer;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE NOTICE '% may not administer the roles of another: they get no rights here (%)', current_user, SQLERRM;
END
$$;
