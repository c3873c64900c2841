-- Everything that a command changes, with the jobs that follow and the completion of its own: all of it, or nothing.
--   $1 worker_id uuid, $2 job_id uuid, $3 claim_no integer, $4 started_us bigint, $5 retention_days integer (the claim that
--   this ends; $1 null: none), $6 aggregate_name text, $7 aggregate_id text, $8 expected_version integer,
--   $9 event_ids uuid[], $10 event_names text[], $11 event_versions integer[], $12 event_data text[], $13 metadata text,
--   $14 receipt_scope text, $15 receipt_aggregate text, $16 source_id text (null: no receipt), $17 result text,
--   $18 fires text, $19 deadline_names text[], $20 deadline_jobs uuid[], $21 snapshot_version integer, $22 snapshot text,
--   $23 line_subscriber text, $24 line_aggregate_name text, $25 line_aggregate_id text, $26 line_next uuid,
--   $27 lines text[] (pairwise with the jobs), $28 to $41: jobs, as $1 to $14 of insert_jobs
-- Returns one row: status, soonest_us.
SELECT status, soonest_us FROM eventflow.commit_changes(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25,
    $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, $39, $40, $41
);
