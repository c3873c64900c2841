-- Forget workers that were closed a day ago, and what was asked of any that is closed.
WITH unheard AS (
    DELETE FROM eventflow.signal AS s USING eventflow.worker AS w WHERE w.id = s.worker_id AND w.closed_at IS NOT NULL
)
DELETE FROM eventflow.worker WHERE closed_at < statement_timestamp() - interval '1 day';
