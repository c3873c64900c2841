-- Everything that a command changes, with the jobs that follow and the completion of its own: all of it, or nothing.
--   $1 patient boolean (wait for whoever writes to the stream just now), $2 worker_id uuid, $3 job_id uuid,
--   $4 claim_no integer, $5 started_us bigint, $6 retention_days integer (the claim that this ends; $2 null: none),
--   $7 aggregate_name text, $8 aggregate_id text, $9 expected_version integer, $10 event_ids uuid[], $11 event_names text[],
--   $12 event_versions integer[], $13 event_data text[], $14 metadata text, $15 receipt_scope text,
--   $16 receipt_aggregate text, $17 source_id text (null: no receipt), $18 result text, $19 fires_aggregate_name text,
--   $20 fires_aggregate_id text, $21 fires text (null: no deadline), $22 deadline_names text[], $23 deadline_jobs uuid[],
--   $24 snapshot_version integer, $25 snapshot text, $26 line_subscriber text, $27 line_aggregate_name text,
--   $28 line_aggregate_id text, $29 line_next uuid, $30 line_version integer, $31 lines text[], $32 line_versions integer[]
--   (pairwise with the jobs), $33 to $46: jobs, as $1 to $14 of insert_jobs
-- Returns one row: status, soonest_us.
SELECT status, soonest_us FROM eventflow.commit_changes(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25,
    $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, $39, $40, $41, $42, $43, $44, $45, $46
);
