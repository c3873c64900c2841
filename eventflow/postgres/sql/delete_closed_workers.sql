-- Forget workers that were closed a day ago.
DELETE FROM eventflow.worker WHERE closed_at < statement_timestamp() - interval '1 day';
