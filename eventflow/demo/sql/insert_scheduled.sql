-- Note commands whose scheduling was acknowledged.
--   pairwise arrays: $1 source_ids text[], $2 job_ids uuid[]
INSERT INTO demo.scheduled (source_id, job_id) SELECT * FROM unnest($1::text[], $2::uuid[]);
