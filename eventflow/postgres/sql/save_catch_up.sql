-- Give a subscriber the jobs of events that it has missed, and remember how far it is.
--   $1 subscriber text, $2 cursor text, $3 events_read bigint, $4 finished boolean, $5 aggregate_names text[],
--   $6 event_owners text[] and $7 stream_versions integer[] (pairwise with the jobs, for a subscriber that takes events in
--   order; else null), $8 to $21: jobs, as $1 to $14 of insert_jobs
-- Returns one row: made, the number of jobs.
SELECT eventflow.catch_up(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21
) AS made;
