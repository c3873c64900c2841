-- Note when the worker was killed.
--   $1 killed_at timestamptz
INSERT INTO demo.kill (killed_at) VALUES ($1);
