-- Events and what is written with them: receipts, deadlines, snapshots; and the function that writes it all at once.

-- A stream is (aggregate_name, aggregate_id).
CREATE TABLE eventflow.event (
    aggregate_name text NOT NULL CHECK (pg_catalog.length(aggregate_name) BETWEEN 1 AND 150),
    aggregate_id text NOT NULL CHECK (pg_catalog.length(aggregate_id) BETWEEN 1 AND 200),
    stream_version integer NOT NULL CHECK (stream_version > 0),
    position bigint GENERATED ALWAYS AS IDENTITY,  -- grows, with gaps; not the order of commits
    xid xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(),
    id uuid NOT NULL,
    name text NOT NULL CHECK (pg_catalog.length(name) BETWEEN 1 AND 150),
    version integer NOT NULL CHECK (version > 0),
    data json NOT NULL CHECK (pg_catalog.octet_length(data::text) <= 2097152),
    metadata json NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (aggregate_name, aggregate_id, stream_version)
);
CREATE UNIQUE INDEX event_position_idx ON eventflow.event (position);
CREATE INDEX event_xid_idx ON eventflow.event (xid, position);  -- for readers of all events
CREATE INDEX event_id_idx ON eventflow.event (id);
CREATE INDEX event_correlation_idx ON eventflow.event ((metadata ->> 'correlation_id'));

-- Operations that were done, so that none is done twice.
CREATE TABLE eventflow.command_receipt (
    scope text NOT NULL,                    -- the aggregate's name, or the command's
    aggregate_id text NOT NULL,             -- or ''
    source_id text NOT NULL,
    result json NOT NULL,
    done_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (scope, aggregate_id, source_id)
);
CREATE INDEX command_receipt_done_idx ON eventflow.command_receipt USING brin (done_at) WITH (pages_per_range = 32);

CREATE TABLE eventflow.deadline (
    aggregate_name text NOT NULL,
    aggregate_id text NOT NULL,
    name text NOT NULL,
    job_id uuid NOT NULL,
    PRIMARY KEY (aggregate_name, aggregate_id, name)
);

-- The newest snapshot of a stream.
CREATE TABLE eventflow.snapshot (
    aggregate_name text NOT NULL,
    aggregate_id text NOT NULL,
    stream_version integer NOT NULL,
    version integer NOT NULL,
    data json NOT NULL,
    PRIMARY KEY (aggregate_name, aggregate_id)
);

-- Where a subscriber that takes the events of a stream in order stands there: which event is next, and its job. While
-- there is a row, events that follow make no job: that of the next event is made when the one before has been dealt with.
CREATE TABLE eventflow.event_line (
    subscriber text NOT NULL,
    aggregate_name text NOT NULL,
    aggregate_id text NOT NULL,
    stream_version integer NOT NULL,
    job_id uuid NOT NULL,
    queue_id integer NOT NULL,
    catching_up boolean NOT NULL DEFAULT false,  -- later events may have been dealt with already
    PRIMARY KEY (subscriber, aggregate_name, aggregate_id)
);

-- How far a subscriber that was added later has been caught up with the events before.
CREATE TABLE eventflow.catch_up (
    subscriber text PRIMARY KEY,
    cursor text NOT NULL,                   -- of a reader of all events
    events_read bigint NOT NULL,
    jobs_made bigint NOT NULL,
    finished_at timestamptz                 -- null: it can be resumed
);

-- Add jobs. A delay counts from this call; a due time in the past makes a job ready now.
--   Pairwise; at_us and delay_us both null: now; tags: array literals. left_out: of these ids.
-- Returns the microseconds from now until the first of them is ready.
CREATE FUNCTION eventflow.insert_jobs(
    ids uuid[], queue_ids integer[], priorities smallint[], at_us bigint[], delay_us bigint[], names text[],
    versions integer[], payloads text[], headers text[], tags text[], aggregate_ids text[], keys text[],
    retries text[], timeouts_us bigint[], left_out uuid[] DEFAULT '{}'
) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    now timestamptz := clock_timestamp();
    soonest_us bigint;
BEGIN
WITH given AS (
    SELECT g.*, CASE
        WHEN g.at_us IS NOT NULL THEN timestamptz 'epoch' + g.at_us * interval '1 microsecond'
        ELSE now + coalesce(g.delay_us, 0) * interval '1 microsecond'
    END AS due_at
    FROM unnest(
        insert_jobs.ids, insert_jobs.queue_ids, insert_jobs.priorities, insert_jobs.at_us, insert_jobs.delay_us,
        insert_jobs.names, insert_jobs.versions, insert_jobs.payloads, insert_jobs.headers, insert_jobs.tags,
        insert_jobs.aggregate_ids, insert_jobs.keys, insert_jobs.retries, insert_jobs.timeouts_us
    ) AS g (
        id, queue_id, priority, at_us, delay_us, name, version, payload, headers, tags, aggregate_id, key, retry,
        timeout_us
    )
    WHERE g.id <> ALL (insert_jobs.left_out)
), inserted AS (
    INSERT INTO eventflow.job AS j (
        id, queue_id, priority, due_at, ready_at, created_at, name, version, payload, headers, tags, aggregate_id,
        key, retry, timeout_us
    )
    SELECT
        g.id, g.queue_id, g.priority, g.due_at, greatest(g.due_at, now), now, g.name, g.version, g.payload::json,
        g.headers::json, g.tags::text[], g.aggregate_id, g.key, g.retry::json, g.timeout_us
    FROM given AS g
    RETURNING j.ready_at
)
SELECT (extract(epoch FROM min(i.ready_at) - clock_timestamp()) * 1000000)::bigint INTO soonest_us FROM inserted AS i;
RETURN soonest_us;
END
$$;

-- Everything that a command changes, with the jobs that follow from it and the completion of the job that published it:
-- all of it, or nothing. Nothing is written before everything is checked, so there is nothing to undo.
--   patient: wait for whoever writes to the stream just now.
--   worker_id, job_id, claim_no, started_us, retention_days: the claim that this ends; null: none.
--   aggregate_name, aggregate_id, expected_version: the stream; null: none.
--   event_ids, event_names, event_versions, event_data: pairwise. metadata: of all of them.
--   receipt_scope, receipt_aggregate, source_id, result: the receipt; null: none.
--   fires_aggregate_name, fires_aggregate_id, fires: the deadline that this job is; null: none.
--   deadline_names, deadline_jobs: deadlines of the stream, pairwise; null: no job any more.
--   snapshot_version, snapshot: of the stream with these events; null: none.
--   line_subscriber, line_aggregate_name, line_aggregate_id, line_next, line_version: the claimed job has dealt with an event
--   in order; next comes this job, for the event of this number; null: there is none up to this number.
--   jobs: as for insert_jobs. lines, line_versions: pairwise, the subscriber if it takes events in order, and the event's
--   number in the stream: only the first in line is added.
-- Returns one row: status, and soonest_us as insert_jobs. Status is 'done'; or nothing was written: 'lost' the claim is not
-- the worker's, 'busy' somebody writes to the stream or stands in a line (unless patient), 'conflict' it has other events,
-- 'passed' the deadline was replaced or cancelled, 'grown' there are events beyond those that were looked at for the next in
-- line, 'duplicate' there is such a receipt.
CREATE FUNCTION eventflow.commit_changes(
    patient boolean, worker_id uuid, job_id uuid, claim_no integer, started_us bigint, retention_days integer,
    aggregate_name text, aggregate_id text, expected_version integer,
    event_ids uuid[], event_names text[], event_versions integer[], event_data text[], metadata text,
    receipt_scope text, receipt_aggregate text, source_id text, result text,
    fires_aggregate_name text, fires_aggregate_id text, fires text, deadline_names text[], deadline_jobs uuid[],
    snapshot_version integer, snapshot text, line_subscriber text, line_aggregate_name text, line_aggregate_id text,
    line_next uuid, line_version integer, lines text[], line_versions integer[],
    ids uuid[], queue_ids integer[], priorities smallint[], at_us bigint[], delay_us bigint[], names text[],
    versions integer[], payloads text[], headers text[], tags text[], aggregate_ids text[], keys text[],
    retries text[], timeouts_us bigint[]
) RETURNS TABLE (status text, soonest_us bigint)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    left_out uuid[] := '{}';
BEGIN
IF commit_changes.worker_id IS NOT NULL THEN
    -- The fence: from here on a rescue waits for this.
    PERFORM FROM eventflow.running AS r
    WHERE r.id = commit_changes.job_id AND r.worker_id = commit_changes.worker_id
      AND r.claim_no = commit_changes.claim_no
    FOR UPDATE;
    IF NOT FOUND THEN
        RETURN QUERY SELECT 'lost', NULL::bigint;
        RETURN;
    END IF;
END IF;

IF commit_changes.aggregate_name IS NOT NULL THEN
    -- Writers of one stream take turns; statements after this see what those before have committed.
    IF commit_changes.patient THEN
        PERFORM pg_advisory_xact_lock(eventflow.stream_key(commit_changes.aggregate_name, commit_changes.aggregate_id));
    ELSIF NOT pg_try_advisory_xact_lock(
        eventflow.stream_key(commit_changes.aggregate_name, commit_changes.aggregate_id)
    ) THEN
        RETURN QUERY SELECT 'busy', NULL::bigint;
        RETURN;
    END IF;
    IF cardinality(commit_changes.event_ids) > 0 AND commit_changes.expected_version IS DISTINCT FROM (
        SELECT coalesce(max(e.stream_version), 0) FROM eventflow.event AS e
        WHERE e.aggregate_name = commit_changes.aggregate_name AND e.aggregate_id = commit_changes.aggregate_id
    ) THEN
        RETURN QUERY SELECT 'conflict', NULL::bigint;
        RETURN;
    END IF;
END IF;

IF commit_changes.fires IS NOT NULL THEN
    -- The lock, as its aggregate's stream may be another: whoever replaces or cancels it waits, or was first.
    PERFORM FROM eventflow.deadline AS d
    WHERE d.aggregate_name = commit_changes.fires_aggregate_name AND d.aggregate_id = commit_changes.fires_aggregate_id
      AND d.name = commit_changes.fires AND d.job_id = commit_changes.job_id
    FOR UPDATE;
    IF NOT FOUND THEN
        RETURN QUERY SELECT 'passed', NULL::bigint;
        RETURN;
    END IF;
END IF;

IF commit_changes.line_subscriber IS NOT NULL OR cardinality(commit_changes.lines) > 0 THEN
    -- Whoever appends to a stream, and whoever may leave a line there, take turns.
    IF NOT eventflow.lock_lines(
        commit_changes.patient,
        array_prepend(commit_changes.line_subscriber, commit_changes.lines),
        array_prepend(
            commit_changes.line_aggregate_name,
            array_fill(commit_changes.aggregate_name, ARRAY[cardinality(commit_changes.lines)])),
        array_prepend(
            commit_changes.line_aggregate_id,
            array_fill(commit_changes.aggregate_id, ARRAY[cardinality(commit_changes.lines)]))
    ) THEN
        RETURN QUERY SELECT 'busy', NULL::bigint;
        RETURN;
    END IF;
    IF commit_changes.line_next IS NULL AND commit_changes.line_version < (
        SELECT max(e.stream_version) FROM eventflow.event AS e
        WHERE e.aggregate_name = commit_changes.line_aggregate_name
          AND e.aggregate_id = commit_changes.line_aggregate_id
    ) THEN
        RETURN QUERY SELECT 'grown', NULL::bigint;
        RETURN;
    END IF;
END IF;

IF commit_changes.source_id IS NOT NULL THEN
    INSERT INTO eventflow.command_receipt (scope, aggregate_id, source_id, result)
    VALUES (
        commit_changes.receipt_scope, commit_changes.receipt_aggregate, commit_changes.source_id,
        commit_changes.result::json)
    ON CONFLICT (scope, aggregate_id, source_id) DO NOTHING;
    IF NOT FOUND THEN
        RETURN QUERY SELECT 'duplicate', NULL::bigint;
        RETURN;
    END IF;
END IF;

IF cardinality(commit_changes.event_ids) > 0 THEN
    INSERT INTO eventflow.event (aggregate_name, aggregate_id, stream_version, id, name, version, data, metadata)
    SELECT
        commit_changes.aggregate_name, commit_changes.aggregate_id, commit_changes.expected_version + g.number,
        g.id, g.name, g.version, g.data::json, commit_changes.metadata::json
    FROM unnest(
        commit_changes.event_ids, commit_changes.event_names, commit_changes.event_versions, commit_changes.event_data
    ) WITH ORDINALITY AS g (id, name, version, data, number)
    ORDER BY g.number;
END IF;

IF commit_changes.fires IS NOT NULL THEN
    DELETE FROM eventflow.deadline AS d
    WHERE d.aggregate_name = commit_changes.fires_aggregate_name AND d.aggregate_id = commit_changes.fires_aggregate_id
      AND d.name = commit_changes.fires;
END IF;
IF cardinality(commit_changes.deadline_names) > 0 THEN
    -- One that a worker holds already finds out when it is about to commit.
    WITH replaced AS (
        DELETE FROM eventflow.deadline AS d
        WHERE d.aggregate_name = commit_changes.aggregate_name AND d.aggregate_id = commit_changes.aggregate_id
          AND d.name = ANY (commit_changes.deadline_names)
        RETURNING d.job_id
    )
    DELETE FROM eventflow.job AS j WHERE j.id = ANY (ARRAY(SELECT r.job_id FROM replaced AS r));
    INSERT INTO eventflow.deadline (aggregate_name, aggregate_id, name, job_id)
    SELECT commit_changes.aggregate_name, commit_changes.aggregate_id, g.name, g.job_id
    FROM unnest(commit_changes.deadline_names, commit_changes.deadline_jobs) AS g (name, job_id)
    WHERE g.job_id IS NOT NULL;
END IF;

IF commit_changes.snapshot IS NOT NULL THEN
    INSERT INTO eventflow.snapshot AS s (aggregate_name, aggregate_id, stream_version, version, data)
    VALUES (
        commit_changes.aggregate_name, commit_changes.aggregate_id,
        commit_changes.expected_version + cardinality(commit_changes.event_ids), commit_changes.snapshot_version,
        commit_changes.snapshot::json)
    ON CONFLICT (aggregate_name, aggregate_id) DO UPDATE
    SET stream_version = excluded.stream_version, version = excluded.version, data = excluded.data;
END IF;

IF commit_changes.line_next IS NOT NULL THEN
    UPDATE eventflow.event_line AS l
    SET job_id = commit_changes.line_next, stream_version = commit_changes.line_version, queue_id = coalesce((
        SELECT g.queue_id FROM unnest(commit_changes.ids, commit_changes.queue_ids) AS g (id, queue_id)
        WHERE g.id = commit_changes.line_next
    ), l.queue_id)
    WHERE l.subscriber = commit_changes.line_subscriber AND l.aggregate_name = commit_changes.line_aggregate_name
      AND l.aggregate_id = commit_changes.line_aggregate_id AND l.job_id = commit_changes.job_id;
    IF NOT FOUND THEN
        left_out := ARRAY[commit_changes.line_next];  -- it stands elsewhere
    END IF;
ELSIF commit_changes.line_subscriber IS NOT NULL THEN
    DELETE FROM eventflow.event_line AS l
    WHERE l.subscriber = commit_changes.line_subscriber AND l.aggregate_name = commit_changes.line_aggregate_name
      AND l.aggregate_id = commit_changes.line_aggregate_id AND l.job_id = commit_changes.job_id;
END IF;
IF cardinality(commit_changes.lines) > 0 THEN
    WITH given AS MATERIALIZED (
        SELECT g.* FROM unnest(
            commit_changes.lines, commit_changes.line_versions, commit_changes.ids, commit_changes.queue_ids
        ) AS g (line, stream_version, id, queue_id)
        WHERE g.line IS NOT NULL
    ), first AS (
        INSERT INTO eventflow.event_line AS l (
            subscriber, aggregate_name, aggregate_id, stream_version, job_id, queue_id
        )
        SELECT DISTINCT ON (g.line)
            g.line, commit_changes.aggregate_name, commit_changes.aggregate_id, g.stream_version, g.id, g.queue_id
        FROM given AS g ORDER BY g.line, g.stream_version
        -- An update, for the lock: a line that has just been begun may not be left before this is committed.
        ON CONFLICT (subscriber, aggregate_name, aggregate_id) DO UPDATE SET job_id = l.job_id
        RETURNING l.job_id
    )
    SELECT left_out || coalesce(array_agg(g.id), '{}') INTO left_out
    FROM given AS g WHERE g.id NOT IN (SELECT f.job_id FROM first AS f);
END IF;
IF cardinality(commit_changes.ids) > 0 THEN
    soonest_us := eventflow.insert_jobs(
        commit_changes.ids, commit_changes.queue_ids, commit_changes.priorities, commit_changes.at_us,
        commit_changes.delay_us, commit_changes.names, commit_changes.versions, commit_changes.payloads,
        commit_changes.headers, commit_changes.tags, commit_changes.aggregate_ids, commit_changes.keys,
        commit_changes.retries, commit_changes.timeouts_us, left_out);
END IF;
IF commit_changes.worker_id IS NOT NULL THEN
    PERFORM eventflow.complete_jobs(
        commit_changes.worker_id, ARRAY[commit_changes.job_id], ARRAY[commit_changes.claim_no], ARRAY['succeeded'],
        ARRAY[commit_changes.started_us], ARRAY[commit_changes.retention_days], ARRAY[NULL::text]);
END IF;
RETURN QUERY SELECT 'done', soonest_us;
END
$$;

-- Lock those of these lines that are there, in one order, so that nobody waits in a circle.
--   Pairwise; nulls are passed over. patient: wait for who holds them. Returns whether all are locked.
CREATE FUNCTION eventflow.lock_lines(
    patient boolean, subscribers text[], aggregate_names text[], aggregate_ids text[]
) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    present integer;
    locked integer;
BEGIN
IF lock_lines.patient THEN
    PERFORM FROM unnest(lock_lines.subscribers, lock_lines.aggregate_names, lock_lines.aggregate_ids)
        AS g (subscriber, aggregate_name, aggregate_id)
    JOIN eventflow.event_line AS l USING (subscriber, aggregate_name, aggregate_id)
    ORDER BY l.subscriber, l.aggregate_name, l.aggregate_id
    FOR UPDATE OF l;
    RETURN true;
END IF;
WITH wanted AS MATERIALIZED (
    SELECT g.* FROM unnest(lock_lines.subscribers, lock_lines.aggregate_names, lock_lines.aggregate_ids)
        AS g (subscriber, aggregate_name, aggregate_id)
), held AS MATERIALIZED (
    SELECT FROM wanted JOIN eventflow.event_line AS l USING (subscriber, aggregate_name, aggregate_id)
    FOR UPDATE OF l SKIP LOCKED
)
SELECT
    (SELECT count(*) FROM wanted JOIN eventflow.event_line AS l USING (subscriber, aggregate_name, aggregate_id)),
    (SELECT count(*) FROM held)
INTO present, locked;
RETURN present = locked;
END
$$;

-- Put lines whose job has ended without going on, cancelled or ignored or deleted, on their way again: with a job that only
-- passes over its event. Returns how many, at most 1,000.
CREATE FUNCTION eventflow.mend_lines() RETURNS integer
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    mended integer;
BEGIN
WITH broken AS MATERIALIZED (
    SELECT l.* FROM eventflow.event_line AS l
    WHERE NOT EXISTS (SELECT FROM eventflow.job AS j WHERE j.id = l.job_id)
      AND NOT EXISTS (SELECT FROM eventflow.running AS r WHERE r.id = l.job_id)
      AND NOT EXISTS (SELECT FROM eventflow.dead_letter AS d WHERE d.id = l.job_id)
    LIMIT 1000
), mended AS (
    UPDATE eventflow.event_line AS l SET job_id = eventflow.uuid_v7() FROM broken AS b
    WHERE l.subscriber = b.subscriber AND l.aggregate_name = b.aggregate_name AND l.aggregate_id = b.aggregate_id
      AND l.job_id = b.job_id
    RETURNING l.*
), passing AS (
    SELECT m.job_id, m.queue_id, 'Subscriber:' || m.subscriber AS name, json_build_object(
        'aggregate_name', m.aggregate_name, 'aggregate_id', m.aggregate_id, 'stream_version', m.stream_version,
        'event', (
            SELECT e.name FROM eventflow.event AS e
            WHERE e.aggregate_name = m.aggregate_name AND e.aggregate_id = m.aggregate_id
              AND e.stream_version = m.stream_version
        ), 'catches_up', m.catching_up, 'passes_over', true) AS payload
    FROM mended AS m
), inserted AS (
    INSERT INTO eventflow.job (id, queue_id, due_at, ready_at, name, version, payload)
    SELECT p.job_id, p.queue_id, clock_timestamp(), clock_timestamp(), p.name, 1, p.payload FROM passing AS p
    RETURNING id
)
SELECT count(*) INTO mended FROM inserted;
RETURN mended;
END
$$;

-- Key of the advisory lock on a stream; two streams with one key take turns too.
CREATE FUNCTION eventflow.stream_key(aggregate_name text, aggregate_id text) RETURNS bigint
LANGUAGE sql IMMUTABLE RETURN hashtextextended('eventflow ' || aggregate_name || ' ' || aggregate_id, 0);

-- Give a subscriber the jobs of events that it has missed, and remember how far it is, in one transaction.
--   jobs: as for insert_jobs; those that exist already, in whatever state, are left out.
--   aggregate_names, event_owners, stream_versions: pairwise with the jobs, their events, for a subscriber that takes them in
--   order: of a stream only the first job is added, and none if the subscriber stands there before it or is being caught up.
--   Null: it does not.
-- Returns the number of jobs made.
CREATE FUNCTION eventflow.catch_up(
    subscriber text, cursor text, events_read bigint, finished boolean,
    aggregate_names text[], event_owners text[], stream_versions integer[], ids uuid[], queue_ids integer[], priorities smallint[], at_us bigint[], delay_us bigint[], names text[],
    versions integer[], payloads text[], headers text[], tags text[], aggregate_ids text[], keys text[],
    retries text[], timeouts_us bigint[]
) RETURNS integer
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    left_out uuid[];
    made integer;
BEGIN
    IF catch_up.aggregate_names IS NOT NULL THEN
        -- Where the subscriber stands it stays from here on: it must not come by an event that seems to have no job yet.
        PERFORM eventflow.lock_lines(
            true, array_fill(catch_up.subscriber, ARRAY[cardinality(catch_up.ids)]), catch_up.aggregate_names,
            catch_up.event_owners);
    END IF;
    SELECT coalesce(array_agg(DISTINCT j.id), '{}') INTO left_out
    FROM eventflow.any_job AS j WHERE j.id = ANY (catch_up.ids);
    IF catch_up.aggregate_names IS NOT NULL THEN
        WITH given AS MATERIALIZED (
            SELECT g.* FROM unnest(
                catch_up.aggregate_names, catch_up.event_owners, catch_up.stream_versions, catch_up.ids,
                catch_up.queue_ids
            ) AS g (aggregate_name, aggregate_id, stream_version, id, queue_id)
            WHERE g.id <> ALL (left_out)
        ), first AS (
            INSERT INTO eventflow.event_line AS l (
                subscriber, aggregate_name, aggregate_id, stream_version, job_id, queue_id, catching_up
            )
            SELECT DISTINCT ON (g.aggregate_name, g.aggregate_id)
                catch_up.subscriber, g.aggregate_name, g.aggregate_id, g.stream_version, g.id, g.queue_id, true
            FROM given AS g ORDER BY g.aggregate_name, g.aggregate_id, g.stream_version
            -- It has come to a newer event since it was deployed: it goes back, and comes by there again.
            ON CONFLICT (subscriber, aggregate_name, aggregate_id) DO UPDATE
            SET stream_version = excluded.stream_version, job_id = excluded.job_id, queue_id = excluded.queue_id,
                catching_up = true
            WHERE NOT l.catching_up AND l.stream_version > excluded.stream_version
            RETURNING l.job_id
        )
        SELECT left_out || coalesce(array_agg(g.id), '{}') INTO left_out
        FROM given AS g WHERE g.id NOT IN (SELECT f.job_id FROM first AS f);
    END IF;
    SELECT count(*) INTO made FROM unnest(catch_up.ids) AS g (id) WHERE g.id <> ALL (left_out);
    PERFORM eventflow.insert_jobs(
        catch_up.ids, catch_up.queue_ids, catch_up.priorities, catch_up.at_us, catch_up.delay_us, catch_up.names,
        catch_up.versions, catch_up.payloads, catch_up.headers, catch_up.tags, catch_up.aggregate_ids, catch_up.keys,
        catch_up.retries, catch_up.timeouts_us, left_out);
    INSERT INTO eventflow.catch_up AS c (subscriber, cursor, events_read, jobs_made, finished_at)
    VALUES (
        catch_up.subscriber, catch_up.cursor, catch_up.events_read, made,
        CASE WHEN catch_up.finished THEN clock_timestamp() END)
    ON CONFLICT (subscriber) DO UPDATE
    SET cursor = excluded.cursor, events_read = excluded.events_read, jobs_made = c.jobs_made + excluded.jobs_made,
        finished_at = excluded.finished_at;
    RETURN made;
END
$$;

-- Forget old receipts. Returns how many, at most 10,000.
CREATE FUNCTION eventflow.forget_receipts(kept_days integer) RETURNS integer
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    forgotten integer;
BEGIN
    DELETE FROM eventflow.command_receipt AS r WHERE r.ctid = ANY (ARRAY(
        SELECT o.ctid FROM eventflow.command_receipt AS o
        WHERE o.done_at < clock_timestamp() - make_interval(days => forget_receipts.kept_days)
        LIMIT 10000
    ));
    GET DIAGNOSTICS forgotten = ROW_COUNT;
    RETURN forgotten;
END
$$;

-- Pinned like the other hot statements.
DO $$
DECLARE
    hot text;
    pin text;
BEGIN
    FOREACH hot IN ARRAY ARRAY['commit_changes', 'insert_jobs', 'lock_lines', 'mend_lines'] LOOP
        FOREACH pin IN ARRAY ARRAY[
            'search_path = pg_catalog, pg_temp', 'plan_cache_mode = force_generic_plan', 'jit = off',
            'enable_seqscan = off', 'enable_bitmapscan = off', 'enable_hashjoin = off', 'enable_mergejoin = off',
            'max_parallel_workers_per_gather = 0'
        ] LOOP
            EXECUTE pg_catalog.format('ALTER FUNCTION eventflow.%I SET %s', hot, pin);
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
    FOREACH made IN ARRAY ARRAY['event', 'command_receipt', 'deadline', 'snapshot', 'event_line', 'catch_up'] LOOP
        EXECUTE pg_catalog.format('ALTER TABLE eventflow.%I OWNER TO eventflow_owner', made);
        EXECUTE pg_catalog.format('GRANT SELECT ON eventflow.%I TO eventflow_viewer', made);
        EXECUTE pg_catalog.format('GRANT INSERT, DELETE ON eventflow.%I TO eventflow_worker', made);
    END LOOP;
    GRANT UPDATE ON eventflow.snapshot, eventflow.event_line, eventflow.deadline, eventflow.catch_up TO eventflow_worker;
    REVOKE DELETE ON eventflow.event FROM eventflow_worker;
    FOR made IN
        SELECT p.oid::pg_catalog.regprocedure::text FROM pg_catalog.pg_proc AS p
        WHERE p.pronamespace = 'eventflow'::pg_catalog.regnamespace
          AND p.proname IN ('insert_jobs', 'commit_changes', 'lock_lines', 'mend_lines', 'stream_key', 'catch_up', 'forget_receipts')
    LOOP
        EXECUTE pg_catalog.format('ALTER FUNCTION %s OWNER TO eventflow_owner', made);
        EXECUTE pg_catalog.format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', made);
        EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO eventflow_worker', made);
    END LOOP;
    GRANT EXECUTE ON FUNCTION eventflow.insert_jobs TO eventflow_producer;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE NOTICE '% may not administer the roles of another: they get no rights here (%)', current_user, SQLERRM;
END
$$;
