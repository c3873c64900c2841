-- The partition of jobs that ended yesterday is there too: the database's clock may be set back over midnight, or a
-- failover lead to a server that is behind, and what ends then would not be kept.

CREATE OR REPLACE FUNCTION eventflow.maintain_history(kept_days integer[] DEFAULT '{1}') RETURNS integer
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
        SELECT DISTINCT today + kept + ahead FROM unnest(kept_days) AS kept, generate_series(-1, 3) AS ahead
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
          AND c.relname ~ '^job_history_[0-9]{8}$' AND c.relname < 'job_history_' || to_char(today, 'YYYYMMDD')
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
