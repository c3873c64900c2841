-- Identifies the running server: changes with a restart and a failover. The same expression as in tick_worker.
SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint::text
    || '/' || (SELECT timeline_id FROM pg_control_checkpoint()) AS id;
