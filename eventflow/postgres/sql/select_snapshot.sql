-- What this transaction sees; and have its statements planned by indexes, however empty the tables were or seem to be.
-- Returns one row: snapshot, is_standby (whose snapshots do not tell which transactions are running).
SELECT pg_current_snapshot() AS snapshot, pg_is_in_recovery() AS is_standby,
    set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
    set_config('max_parallel_workers_per_gather', '0', true), set_config('jit', 'off', true);
