-- Let all jobs of a closed worker wait again, in the transaction that closed it.
--   $1 worker_id uuid, $2 crashed boolean (it died: counted; the fifth time ends the job)
-- Returns one row: released, the number of jobs.
SELECT eventflow.release_claims($1, $2) AS released;
