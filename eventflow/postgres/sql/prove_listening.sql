-- Send a worker a proof on its own channel, which wakes nobody else.
--   $1 channel text, $2 nonce text
SELECT pg_notify($1, $2);
