-- Make the history's coming partitions and drop expired ones.
--   $1 kept_days integer[]
SELECT eventflow.maintain_history($1::integer[]);
