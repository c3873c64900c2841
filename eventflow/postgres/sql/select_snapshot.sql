-- What this transaction sees, and how its statements are planned from here on: for what the tables hold now, by indexes.
-- Returns one row: snapshot, is_standby (whose snapshots do not tell which transactions are running).
SELECT pg_current_snapshot() AS snapshot, pg_is_in_recovery() AS is_standby,
    set_config('plan_cache_mode', 'force_custom_plan', true), set_config('jit', 'off', true),
    set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
    set_config('max_parallel_workers_per_gather', '0', true);
