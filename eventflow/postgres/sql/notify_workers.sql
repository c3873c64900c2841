-- Wake the workers with the commit of the caller's transaction.
SELECT pg_notify('eventflow', '');
