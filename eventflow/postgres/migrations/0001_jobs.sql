-- Tables and roles of the job path.
--
-- Every object is named with its schema. When a file is loaded for another schema, each occurrence of the
-- default schema's name is replaced, in the names of roles and of the notification channel too.

-- Roles. None can log in: grant them to the users your services connect as.
--   eventflow_owner     owns the objects; only migrations use it
--   eventflow_producer  may schedule jobs, not read, change or cancel them
--   eventflow_viewer    may read everything, change nothing
--   eventflow_worker    producer and viewer, and runs, cancels and reschedules jobs
-- A user without CREATEROLE still migrates: the roles are left out, and that user owns everything.
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['eventflow_owner', 'eventflow_producer', 'eventflow_viewer', 'eventflow_worker'] LOOP
        BEGIN
            EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', wanted);
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN NULL;  -- another database of this cluster has them
            WHEN insufficient_privilege THEN
                RAISE NOTICE 'role % is missing and % may not create it: left out', wanted, current_user;
        END;
    END LOOP;
END
$$;

CREATE SCHEMA IF NOT EXISTS eventflow;

CREATE TABLE eventflow.migration (
    version integer PRIMARY KEY,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);

-- Settings of a queue; its number stands in every job and claim. `lanes` belongs to fair queues.
CREATE TABLE eventflow.queue (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE CHECK (pg_catalog.length(name) BETWEEN 1 AND 100),
    lanes smallint NOT NULL DEFAULT 1
);
INSERT INTO eventflow.queue (name) VALUES ('default');

-- Waiting jobs, and only these: a claim moves the row to `running`, so that this table and its claim index hold
-- nothing but what can still be claimed.
CREATE TABLE eventflow.job (
    id uuid PRIMARY KEY,
    queue_id integer NOT NULL,
    lane smallint NOT NULL DEFAULT 0,
    priority smallint NOT NULL DEFAULT 1 CHECK (priority BETWEEN 0 AND 3),
    due_at timestamptz NOT NULL CHECK (due_at BETWEEN '2000-01-01 00:00:00+00' AND '2200-01-01 00:00:00+00'),
    -- greatest(due_at, when the row came to wait): never in the past
    ready_at timestamptz NOT NULL CHECK (ready_at BETWEEN '2000-01-01 00:00:00+00' AND '2200-01-01 00:00:00+00'),
    expires_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    name text NOT NULL CHECK (pg_catalog.length(name) BETWEEN 1 AND 200),
    version integer NOT NULL CHECK (version > 0),
    -- a worker that claims hundreds of the largest still has them within a statement's time
    payload json NOT NULL CHECK (pg_catalog.octet_length(payload::text) <= 2097152),
    headers json CHECK (pg_catalog.octet_length(headers::text) <= 65536),  -- correlation, causation, trace
    tags text[],
    aggregate_id text,
    key text CHECK (pg_catalog.length(key) BETWEEN 1 AND 200),
    batch_id uuid,
    retry json CHECK (pg_catalog.octet_length(retry::text) <= 65536),  -- of a retry policy, where the call gave one
    timeout_us bigint CHECK (timeout_us > 0),
    -- attempts used of the retry budget; workers that died while holding it; claims ever made: the fence
    attempt integer NOT NULL DEFAULT 0 CHECK (attempt BETWEEN 0 AND 1000000000),
    crashes integer NOT NULL DEFAULT 0 CHECK (crashes BETWEEN 0 AND 1000000000),
    claim_no integer NOT NULL DEFAULT 0 CHECK (claim_no BETWEEN 0 AND 1000000000),
    parked text,                            -- why it may not be claimed; null: it may
    past_attempts jsonb                     -- attempts that ended without success, oldest first
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX job_ready_idx ON eventflow.job (queue_id, lane, priority, ready_at, id) WHERE parked IS NULL;

-- Claimed jobs.
CREATE TABLE eventflow.running (
    id uuid PRIMARY KEY,
    worker_id uuid NOT NULL,
    claimed_at timestamptz NOT NULL,
    queue_id integer NOT NULL,
    lane smallint NOT NULL,
    priority smallint NOT NULL,
    due_at timestamptz NOT NULL,
    ready_at timestamptz NOT NULL,
    expires_at timestamptz,
    created_at timestamptz NOT NULL,
    name text NOT NULL,
    version integer NOT NULL,
    payload json NOT NULL,
    headers json,
    tags text[],
    aggregate_id text,
    key text,
    batch_id uuid,
    retry json,
    timeout_us bigint,
    attempt integer NOT NULL,
    crashes integer NOT NULL,
    claim_no integer NOT NULL,
    past_attempts jsonb
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

-- Finished jobs, dropped by the day.
CREATE TABLE eventflow.job_history (
    id uuid NOT NULL,
    expires_on date NOT NULL,
    state text NOT NULL CHECK (state IN ('succeeded', 'ignored', 'cancelled')),
    queue_id integer NOT NULL,
    priority smallint NOT NULL,
    due_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    name text NOT NULL,
    version integer NOT NULL,
    payload json NOT NULL,
    headers json,
    tags text[],
    aggregate_id text,
    key text,
    batch_id uuid,
    attempt integer NOT NULL,
    crashes integer NOT NULL,
    claim_no integer NOT NULL,
    past_attempts jsonb,
    worker_id uuid,                         -- of the last attempt; null: cancelled before any
    started_at timestamptz,
    finished_at timestamptz NOT NULL,
    PRIMARY KEY (id, expires_on)
) PARTITION BY RANGE (expires_on);

-- Jobs that will not be tried again. They stay until somebody decides.
CREATE TABLE eventflow.dead_letter (
    id uuid PRIMARY KEY,
    died_at timestamptz NOT NULL,
    reason text NOT NULL,                   -- error, domain_error, undecodable, timeout, worker_died
    error json,
    queue_id integer NOT NULL,
    lane smallint NOT NULL,
    priority smallint NOT NULL,
    due_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    name text NOT NULL,
    version integer NOT NULL,
    payload json NOT NULL,
    headers json,
    tags text[],
    aggregate_id text,
    key text,
    batch_id uuid,
    retry json,
    timeout_us bigint,
    attempt integer NOT NULL,
    crashes integer NOT NULL,
    claim_no integer NOT NULL,
    past_attempts jsonb,
    worker_id uuid
);

-- One row per incarnation of a worker, never used again once closed.
CREATE TABLE eventflow.worker (
    id uuid PRIMARY KEY,
    host text NOT NULL,
    pid integer NOT NULL,
    version text NOT NULL,
    queues text[],                          -- null: all
    concurrency integer NOT NULL,
    started_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    beat bigint NOT NULL DEFAULT 0,         -- grows while it lives; the clock is not asked
    beat_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    session_key bigint,                     -- advisory lock that its listening session holds; null: not proven
    session_server text,                    -- the server on which that was proven
    closed_at timestamptz
) WITH (fillfactor = 50);

-- What somebody asks of a claimed job; read by its worker's tick.
CREATE TABLE eventflow.signal (
    worker_id uuid NOT NULL,
    job_id uuid NOT NULL,
    claim_no integer NOT NULL,
    kind text NOT NULL CHECK (kind IN ('cancel', 'reschedule')),
    due_at timestamptz,
    PRIMARY KEY (worker_id, job_id, kind)
);

-- Every job, wherever it is. One snapshot sees a job in exactly one of the tables.
CREATE VIEW eventflow.any_job AS
SELECT id, 'waiting' AS state, name, version, queue_id, priority, due_at, created_at, ready_at, payload, headers, tags,
    aggregate_id, key, attempt, crashes, claim_no, past_attempts, NULL::uuid AS worker_id,
    NULL::timestamptz AS started_at, NULL::timestamptz AS ended_at, parked, NULL::text AS reason, NULL::json AS error
FROM eventflow.job
UNION ALL
SELECT id, 'running', name, version, queue_id, priority, due_at, created_at, ready_at, payload, headers, tags,
    aggregate_id, key, attempt, crashes, claim_no, past_attempts, worker_id, claimed_at, NULL, NULL, NULL, NULL
FROM eventflow.running
UNION ALL
SELECT id, state, name, version, queue_id, priority, due_at, created_at, NULL, payload, headers, tags,
    aggregate_id, key, attempt, crashes, claim_no, past_attempts, worker_id, started_at, finished_at, NULL, NULL, NULL
FROM eventflow.job_history
UNION ALL
SELECT id, 'dead', name, version, queue_id, priority, due_at, created_at, NULL, payload, headers, tags,
    aggregate_id, key, attempt, crashes, claim_no, past_attempts, worker_id, NULL, died_at, NULL, reason, error
FROM eventflow.dead_letter;

CREATE FUNCTION eventflow.uuid_v7() RETURNS uuid
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    -- RFC 9562: 48 bits of milliseconds, version 7, the rest random (a version 4 id has the variant already)
    SELECT encode(
        set_byte(
            overlay(uuid_send(gen_random_uuid())
                PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                FROM 1 FOR 6),
            6, (get_byte(uuid_send(gen_random_uuid()), 6) & 15) | 112),
        'hex')::uuid
$$;

-- The number of a queue, made on first use.
CREATE FUNCTION eventflow.ensure_queue(queue_name text) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found_id integer;
BEGIN
    SELECT queue.id INTO found_id FROM eventflow.queue WHERE queue.name = queue_name;
    IF found_id IS NULL THEN
        INSERT INTO eventflow.queue (name) VALUES (queue_name) ON CONFLICT (name) DO NOTHING;
        SELECT queue.id INTO found_id FROM eventflow.queue WHERE queue.name = queue_name;
    END IF;
    RETURN found_id;
END
$$;

-- Schedule from SQL: from psql, a trigger, or a service in another language.
-- Found by the workers' sweep within a second of the commit, or at once with notify => true
-- (which takes a lock of the whole cluster until that commit: not for many transactions a second).
CREATE FUNCTION eventflow.schedule_job(
    name text,
    version integer,
    payload json,
    due_at timestamptz DEFAULT NULL,
    delay interval DEFAULT NULL,
    queue text DEFAULT 'default',
    priority integer DEFAULT 1,
    key text DEFAULT NULL,
    tags text[] DEFAULT NULL,
    notify boolean DEFAULT false
) RETURNS uuid
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    new_id uuid := eventflow.uuid_v7();
    called_at timestamptz := clock_timestamp();
    due timestamptz;
BEGIN
    IF schedule_job.due_at IS NOT NULL AND schedule_job.delay IS NOT NULL THEN
        RAISE EXCEPTION 'schedule_job takes due_at or delay, not both' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF schedule_job.delay < interval '0' THEN
        RAISE EXCEPTION 'schedule_job: a delay cannot be negative' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    due := coalesce(schedule_job.due_at, called_at + schedule_job.delay, called_at);
    INSERT INTO eventflow.job (id, queue_id, priority, due_at, ready_at, name, version, payload, key, tags)
    VALUES (new_id, eventflow.ensure_queue(schedule_job.queue), schedule_job.priority::smallint, due,
            greatest(due, called_at), schedule_job.name, schedule_job.version, schedule_job.payload,
            schedule_job.key, schedule_job.tags);
    IF schedule_job.notify THEN
        PERFORM pg_notify('eventflow', '');
    END IF;
    RETURN new_id;
END
$$;

-- The partition of the history that holds jobs expiring on a day, or null.
CREATE FUNCTION eventflow.history_partition(expires_on date) RETURNS regclass
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT to_regclass('eventflow.job_history_' || to_char(expires_on, 'YYYYMMDD'))
$$;

-- Make the partitions that the coming days need, for jobs kept as many days as the argument says, and drop
-- what has expired. Never waits long for a lock: what it could not do now, the next call does.
-- Returns the number of partitions made and dropped.
CREATE FUNCTION eventflow.maintain_history(kept_days integer[] DEFAULT '{1}') RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
DECLARE
    today date := (clock_timestamp() AT TIME ZONE 'UTC')::date;
    day date;
    expired regclass;
    changed integer := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('eventflow.maintain_history', 0)) THEN
        RETURN 0;  -- another worker is at it
    END IF;
    FOR day IN
        SELECT DISTINCT today + kept + ahead FROM unnest(kept_days) AS kept, generate_series(0, 3) AS ahead
        WHERE kept BETWEEN 1 AND 3650
    LOOP
        IF eventflow.history_partition(day) IS NULL THEN
            BEGIN
                EXECUTE format(
                    'CREATE TABLE eventflow.%I PARTITION OF eventflow.job_history FOR VALUES FROM (%L) TO (%L)',
                    'job_history_' || to_char(day, 'YYYYMMDD'), day, day + 1);
                changed := changed + 1;
            EXCEPTION WHEN lock_not_available OR duplicate_table THEN NULL;
            END;
        END IF;
    END LOOP;
    FOR expired IN
        SELECT c.oid::regclass FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'eventflow.job_history'::regclass
          AND to_date(right(c.relname, 8), 'YYYYMMDD') < today
    LOOP
        BEGIN
            EXECUTE format('DROP TABLE %s', expired);
            changed := changed + 1;
        EXCEPTION WHEN lock_not_available THEN NULL;
        END;
    END LOOP;
    RETURN changed;
END
$$;
SELECT eventflow.maintain_history();

-- Ownership and grants, for the roles that exist.
DO $$
DECLARE
    owned text;
BEGIN
    IF pg_catalog.to_regrole('eventflow_owner') IS NULL THEN
        RETURN;
    END IF;
    -- Postgres 16 and later: who may create roles may not act as them before granting that to himself.
    EXECUTE pg_catalog.format(
        CASE WHEN pg_catalog.current_setting('server_version_num')::integer >= 160000
            THEN 'GRANT eventflow_owner TO %I WITH INHERIT TRUE, SET TRUE' ELSE 'GRANT eventflow_owner TO %I' END,
        current_user);
    EXECUTE pg_catalog.format('GRANT CREATE ON DATABASE %I TO eventflow_owner', pg_catalog.current_database());
    ALTER SCHEMA eventflow OWNER TO eventflow_owner;
    FOR owned IN
        SELECT c.oid::pg_catalog.regclass::text FROM pg_catalog.pg_class AS c
        WHERE c.relnamespace = 'eventflow'::pg_catalog.regnamespace AND c.relkind IN ('r', 'p', 'v')
    LOOP
        EXECUTE pg_catalog.format('ALTER TABLE %s OWNER TO eventflow_owner', owned);
    END LOOP;
    FOR owned IN
        SELECT p.oid::pg_catalog.regprocedure::text FROM pg_catalog.pg_proc AS p
        WHERE p.pronamespace = 'eventflow'::pg_catalog.regnamespace
    LOOP
        EXECUTE pg_catalog.format('ALTER FUNCTION %s OWNER TO eventflow_owner', owned);
        EXECUTE pg_catalog.format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', owned);
    END LOOP;

    GRANT USAGE ON SCHEMA eventflow TO eventflow_producer, eventflow_viewer, eventflow_worker;
    GRANT SELECT ON eventflow.migration TO eventflow_producer, eventflow_viewer, eventflow_worker;

    GRANT SELECT ON eventflow.queue TO eventflow_producer;
    GRANT SELECT (id, due_at, ready_at) ON eventflow.job TO eventflow_producer;
    GRANT INSERT (
        id, queue_id, priority, due_at, ready_at, created_at, name, version, payload, headers, tags, aggregate_id, key,
        retry, timeout_us
    ) ON eventflow.job TO eventflow_producer;
    GRANT SELECT (id) ON eventflow.running, eventflow.job_history, eventflow.dead_letter TO eventflow_producer;
    GRANT SELECT (closed_at) ON eventflow.worker TO eventflow_producer;
    GRANT EXECUTE ON FUNCTION eventflow.uuid_v7(), eventflow.ensure_queue(text),
        eventflow.schedule_job(text, integer, json, timestamptz, interval, text, integer, text, text[], boolean)
        TO eventflow_producer;

    GRANT SELECT ON ALL TABLES IN SCHEMA eventflow TO eventflow_viewer;
    GRANT EXECUTE ON FUNCTION eventflow.history_partition(date) TO eventflow_viewer;

    GRANT eventflow_producer, eventflow_viewer TO eventflow_worker;
    GRANT INSERT, UPDATE, DELETE ON eventflow.job, eventflow.running, eventflow.worker, eventflow.signal
        TO eventflow_worker;
    GRANT INSERT ON eventflow.job_history, eventflow.dead_letter TO eventflow_worker;
    GRANT EXECUTE ON FUNCTION eventflow.maintain_history(integer[]) TO eventflow_worker;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE NOTICE '% may not administer the roles of another: they get no rights here (%)', current_user, SQLERRM;
END
$$;
