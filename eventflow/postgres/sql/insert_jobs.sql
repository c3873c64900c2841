-- Add jobs. A delay counts from this statement; a due time in the past makes a job ready now.
--   pairwise arrays: $1 ids uuid[], $2 queue_ids integer[], $3 priorities smallint[], $4 at_us bigint[] and
--   $5 delay_us bigint[] (both null: now), $6 names text[], $7 versions integer[], $8 payloads text[],
--   $9 headers text[], $10 tags text[] (array literals), $11 aggregate_ids text[], $12 keys text[],
--   $13 retries text[], $14 timeouts_us bigint[]
-- Returns one row: soonest_us, from now until the first of them is ready.
WITH now AS MATERIALIZED (
    SELECT clock_timestamp() AS at
), given AS (
    SELECT g.*, now.at AS inserted_at,
        CASE
            WHEN g.at_us IS NOT NULL THEN timestamptz 'epoch' + g.at_us * interval '1 microsecond'
            ELSE now.at + coalesce(g.delay_us, 0) * interval '1 microsecond'
        END AS due_at
    FROM now CROSS JOIN unnest(
        $1::uuid[], $2::integer[], $3::smallint[], $4::bigint[], $5::bigint[], $6::text[], $7::integer[], $8::text[],
        $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::bigint[]
    ) AS g (
        id, queue_id, priority, at_us, delay_us, name, version, payload, headers, tags, aggregate_id, key, retry,
        timeout_us
    )
), inserted AS (
    INSERT INTO eventflow.job (
        id, queue_id, priority, due_at, ready_at, created_at, name, version, payload, headers, tags, aggregate_id,
        key, retry, timeout_us
    )
    SELECT
        id, queue_id, priority, due_at, greatest(due_at, inserted_at), inserted_at, name, version, payload::json,
        headers::json, tags::text[], aggregate_id, key, retry::json, timeout_us
    FROM given
    RETURNING ready_at
)
SELECT (extract(epoch FROM min(inserted.ready_at) - clock_timestamp()) * 1000000)::bigint AS soonest_us FROM inserted;
