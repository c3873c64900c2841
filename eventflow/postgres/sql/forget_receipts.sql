-- Forget old receipts.
--   $1 kept_days integer
-- Returns one row: forgotten, how many; there may be more unless it is 0.
SELECT eventflow.forget_receipts($1) AS forgotten;
